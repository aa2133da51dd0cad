"""Attention over heads of unequal lengths, split over the keys: one program per row block, split and KV head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvcli_kernels.backend import products
from kvcli_kernels.merge.triton import merge_splits

_KEYS = 64  # of a step
_SPLIT = 1024  # keys of a program


@triton.jit
def _kernel(
    p_q, p_k, p_v, p_indptr, p_o, p_lse, rows, dim, scale, split,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    i_rows, i_split, i_head = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(2)
    o_rows, o_dim = i_rows * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    m_rows, m_dim = o_rows < rows, o_dim < dim
    o_q = (i_head * rows + o_rows)[:, None] * dim + o_dim[None, :]
    m_q = m_rows[:, None] & m_dim[None, :]
    # [ROWS, DIM]
    b_q = tl.load(p_q + o_q, mask=m_q, other=0.0).to(DOT)
    first = tl.load(p_indptr + i_head).to(tl.int64)
    count = (tl.load(p_indptr + i_head + 1).to(tl.int64) - first).to(tl.int32)
    b_top = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_o = tl.zeros([ROWS, DIM], tl.float32)
    begin = i_split * split
    for start in range(begin, tl.minimum(begin + split, count), KEYS):
        o_keys = start + tl.arange(0, KEYS)
        m_keys = o_keys < count
        at = (first + o_keys)[:, None] * dim + o_dim[None, :]
        m_both = m_keys[:, None] & m_dim[None, :]
        # [KEYS, DIM]
        b_k = tl.load(p_k + at, mask=m_both, other=0.0).to(DOT)
        b_v = tl.load(p_v + at, mask=m_both, other=0.0).to(DOT)
        # [ROWS, KEYS]
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        b_logits = tl.where(m_keys[None, :], b_logits, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_logits, 1))
        b_weights = tl.exp(b_logits - b_new[:, None])
        b_old = tl.exp(b_top - b_new)
        b_sum = b_sum * b_old + tl.sum(b_weights, 1)
        b_o = b_o * b_old[:, None] + tl.dot(b_weights.to(DOT), b_v, input_precision="ieee")
        b_top = b_new
    empty = b_sum == 0
    b_total = tl.where(empty, 1.0, b_sum)
    i_term = i_split.to(tl.int64) * heads + i_head
    tl.store(p_o + (i_term * rows + o_rows)[:, None] * dim + o_dim[None, :], b_o / b_total[:, None], mask=m_q)
    tl.store(p_lse + i_term * rows + o_rows, tl.where(empty, float("-inf"), b_top + tl.log(b_total)), mask=m_rows)


def ragged(q: Tensor, k: Tensor, v: Tensor, indptr: Tensor, scale: float, longest: int) -> tuple[Tensor, Tensor]:
    """Same contract as :func:`kvcli_kernels.ragged.ref.ragged`; nothing here waits for the device."""
    heads, m, dim = q.shape
    kv_heads = indptr.shape[0] - 1
    rows, splits = heads // kv_heads * m, max(1, triton.cdiv(longest, _SPLIT))
    o = torch.empty(splits, kv_heads, rows, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, kv_heads, rows, dtype=torch.float32, device=q.device)
    block = max(16, min(64, triton.next_power_of_2(rows)))
    stages = 3 if dim <= 128 else 1  # what consumer cards have the memory for
    _kernel[triton.cdiv(rows, block), splits, kv_heads](
        q.contiguous(), k.contiguous(), v.contiguous(), indptr, o, lse, rows, dim, scale, _SPLIT,
        ROWS=block, KEYS=_KEYS, DIM=max(16, triton.next_power_of_2(dim)), DOT=products(q), num_stages=stages,
    )  # fmt: skip
    o, lse = merge_splits(o.view(splits, heads, m, dim), lse.view(splits, heads, m), q.dtype)
    return o, lse
