"""Attention that unpacks keys and values in registers, split over the keys."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvcli_kernels.backend import products
from kvcli_kernels.merge.triton import merge_splits
from kvcli_kernels.quantize.packed import Packed

_KEYS = 64  # keys per step
_SPLIT = 2048  # keys per program
_ROWS = 16  # maximum query rows for which two pipeline stages with a codebook fit a program's shared memory


@triton.jit
def _unpacked(
    p_codes, p_scale, p_low, p_book, i_head, n, dim, o_n, o_d, column_tiles, stride_codes, stride_scale,
    BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BOOK: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    PER: tl.constexpr = 8 // BITS
    m = (o_n < n)[:, None] & (o_d < dim)[None, :]
    o_code = i_head * stride_codes + o_n.to(tl.int64)[:, None] * (dim // PER) + o_d[None, :] // PER
    b_code = tl.load(p_codes + o_code, mask=m, other=0).to(tl.int32) >> (o_d % PER * BITS)[None, :] & (2**BITS - 1)
    b = tl.load(p_book + b_code) if BOOK else b_code.to(tl.float32)
    o_tile = i_head * stride_scale + (o_n.to(tl.int64) // ROWS)[:, None] * column_tiles + o_d[None, :] // COLUMNS
    b = b * tl.load(p_scale + o_tile, mask=m, other=0).to(tl.float32)
    if LOW:
        b += tl.load(p_low + o_tile, mask=m, other=0).to(tl.float32)
    return tl.where(m, b, 0.0)  # [n, d]


@triton.jit
def _attend(
    p_q, p_o, p_lse, scale, rows, n, dim, split,
    p_kc, p_ks, p_kl, p_kb, k_columns, stride_kc, stride_ks,
    p_vc, p_vs, p_vl, p_vb, v_columns, stride_vc, stride_vs,
    K_BITS: tl.constexpr, K_ROWS: tl.constexpr, K_COLUMNS: tl.constexpr, K_BOOK: tl.constexpr, K_LOW: tl.constexpr,
    V_BITS: tl.constexpr, V_ROWS: tl.constexpr, V_COLUMNS: tl.constexpr, V_BOOK: tl.constexpr, V_LOW: tl.constexpr,
    B_R: tl.constexpr, B_N: tl.constexpr, B_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    i_row, i_split, i_head = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(2)
    o_r, o_d = i_row * B_R + tl.arange(0, B_R), tl.arange(0, B_D)
    m_r = o_r < rows
    o_q = (i_head * rows + o_r)[:, None] * dim + o_d[None, :]
    m_q = m_r[:, None] & (o_d < dim)[None, :]
    b_q = tl.load(p_q + o_q, mask=m_q, other=0.0).to(DOT)  # [r, d]
    b_o = tl.zeros([B_R, B_D], tl.float32)
    b_max, b_sum = tl.full([B_R], float("-inf"), tl.float32), tl.zeros([B_R], tl.float32)
    first = i_split * split
    for start in range(first, min(first + split, n), B_N):
        o_n = start + tl.arange(0, B_N)
        b_k = _unpacked(p_kc, p_ks, p_kl, p_kb, i_head, n, dim, o_n, o_d, k_columns, stride_kc, stride_ks,
                        K_BITS, K_ROWS, K_COLUMNS, K_BOOK, K_LOW)  # fmt: skip
        b_logit = tl.dot(b_q, tl.trans(b_k).to(DOT), input_precision="ieee") * scale
        b_logit = tl.where((o_n < n)[None, :], b_logit, float("-inf"))  # [r, n]
        b_new = tl.maximum(b_max, tl.max(b_logit, 1))
        b_w = tl.exp(b_logit - b_new[:, None])
        b_old = tl.exp(b_max - b_new)
        b_v = _unpacked(p_vc, p_vs, p_vl, p_vb, i_head, n, dim, o_n, o_d, v_columns, stride_vc, stride_vs,
                        V_BITS, V_ROWS, V_COLUMNS, V_BOOK, V_LOW)  # fmt: skip
        b_o = b_o * b_old[:, None] + tl.dot(b_w.to(DOT), b_v.to(DOT), input_precision="ieee")
        b_sum = b_sum * b_old + tl.sum(b_w, 1)
        b_max = b_new
    tl.store(p_o + i_split * heads * rows * dim + o_q, b_o / b_sum[:, None], mask=m_q)
    tl.store(p_lse + (i_split * heads + i_head) * rows + o_r, b_max + tl.log(b_sum), mask=m_r)


def packed_attention(q: Tensor, k: Packed, v: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.packed_attention.ref.packed_attention`."""
    (heads, m, dim), (kv_heads, n, _) = q.shape, k.codes.shape
    if n == 0:
        return torch.zeros_like(q), q.new_full((heads, m), float("-inf"), dtype=torch.float32)
    rows, splits = heads // kv_heads * m, -(-n // _SPLIT)
    o = torch.empty(splits, kv_heads, rows, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, kv_heads, rows, dtype=torch.float32, device=q.device)
    block = max(16, min(64, triton.next_power_of_2(rows)))
    _attend[(-(-rows // block), splits, kv_heads)](
        q.contiguous(), o, lse, scale, rows, n, dim, _SPLIT, *_tensors(k), *_tensors(v),
        **_constants("K", k), **_constants("V", v), B_R=block, B_N=_KEYS, B_D=max(16, triton.next_power_of_2(dim)),
        DOT=products(q), num_stages=_stages(dim, block, k.codebook is not None),
    )  # fmt: skip
    return merge_splits(o.view(splits, heads, m, dim), lse.view(splits, heads, m), q.dtype)


def _stages(dim: int, rows: int, book: bool) -> int:
    """Return the number of pipeline stages, limited by the memory of consumer GPUs
    (tests/unit/kernels/test_for_gpus.py)."""
    if dim <= 64:
        return 3
    return 2 if dim <= 128 and (rows <= _ROWS or not book) else 1


def _tensors(x: Packed) -> tuple[Tensor | int, ...]:
    """Return the tensors and strides; rows are adjacent in memory, heads need not be."""
    low = x.scale if x.low is None else x.low
    book = x.scale if x.codebook is None else x.codebook
    return x.codes, x.scale, low, book, x.scale.shape[2], x.codes.stride(0), x.scale.stride(0)


def _constants(which: str, x: Packed) -> dict[str, int | bool]:
    return {
        f"{which}_BITS": x.bits,
        f"{which}_ROWS": x.tile[0],
        f"{which}_COLUMNS": x.tile[1],
        f"{which}_BOOK": x.codebook is not None,
        f"{which}_LOW": x.low is not None,
    }
