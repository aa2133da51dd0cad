"""Merge of attention terms with a program per block of rows; all terms of a split in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16


@triton.jit
def _pair(p_o_a, p_lse_a, p_o_b, p_lse_b, p_o, p_lse, rows, dim, ROWS: tl.constexpr, DIM: tl.constexpr):
    o_rows, o_dim = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    m_rows = o_rows < rows
    m = m_rows[:, None] & (o_dim < dim)[None, :]
    at = o_rows[:, None] * dim + o_dim[None, :]
    # [ROWS]
    b_lse_a = tl.load(p_lse_a + o_rows, mask=m_rows, other=float("-inf"))
    b_lse_b = tl.load(p_lse_b + o_rows, mask=m_rows, other=float("-inf"))
    b_top = tl.maximum(b_lse_a, b_lse_b)
    b_safe = tl.where(b_top == float("-inf"), 0.0, b_top)
    b_a, b_b = tl.exp(b_lse_a - b_safe), tl.exp(b_lse_b - b_safe)
    b_sum = tl.where(b_a + b_b == 0, 1.0, b_a + b_b)
    # [ROWS, DIM]
    b_o_a = tl.load(p_o_a + at, mask=m, other=0.0).to(tl.float32)
    b_o_b = tl.load(p_o_b + at, mask=m, other=0.0).to(tl.float32)
    b_o = b_o_a * (b_a / b_sum)[:, None] + b_o_b * (b_b / b_sum)[:, None]
    tl.store(p_o + at, b_o.to(p_o.dtype.element_ty), mask=m)
    tl.store(p_lse + o_rows, b_top + tl.log(b_sum), mask=m_rows)


@triton.jit
def _splits(p_o_in, p_lse_in, p_o, p_lse, splits, rows, dim, ROWS: tl.constexpr, DIM: tl.constexpr):
    o_rows, o_dim = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    m_rows = o_rows < rows
    m = m_rows[:, None] & (o_dim < dim)[None, :]
    o_part = o_rows
    b_top = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_o = tl.zeros([ROWS, DIM], tl.float32)
    for _ in range(splits):
        b_lse = tl.load(p_lse_in + o_part, mask=m_rows, other=float("-inf"))
        b_part = tl.load(p_o_in + o_part[:, None] * dim + o_dim[None, :], mask=m, other=0.0).to(tl.float32)
        b_new = tl.maximum(b_top, b_lse)
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_old, b_weight = tl.exp(b_top - b_safe), tl.exp(b_lse - b_safe)
        b_o = b_o * b_old[:, None] + b_part * b_weight[:, None]
        b_sum = b_sum * b_old + b_weight
        b_top = b_new
        o_part += rows
    b_sum = tl.where(b_sum == 0, 1.0, b_sum)
    tl.store(p_o + o_rows[:, None] * dim + o_dim[None, :], (b_o / b_sum[:, None]).to(p_o.dtype.element_ty), mask=m)
    tl.store(p_lse + o_rows, b_top + tl.log(b_sum), mask=m_rows)


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.merge.ref.merge`."""
    (o_a, lse_a), (o_b, lse_b) = a, b
    o = torch.empty_like(o_a, memory_format=torch.contiguous_format)
    lse = torch.empty_like(lse_a, memory_format=torch.contiguous_format)
    rows, dim = lse.numel(), o.shape[-1]
    if rows:
        _pair[(triton.cdiv(rows, _ROWS),)](
            o_a.contiguous(), lse_a.contiguous(), o_b.contiguous(), lse_b.contiguous(), o, lse, rows, dim,
            ROWS=_ROWS, DIM=triton.next_power_of_2(dim),
        )  # fmt: skip
    return o, lse


def merge_splits(o: Tensor, lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.merge.ref.merge_splits`; both arguments are contiguous."""
    splits, heads, m, dim = o.shape
    out = torch.empty(heads, m, dim, dtype=dtype, device=o.device)
    whole = torch.empty(heads, m, dtype=torch.float32, device=o.device)
    rows = heads * m
    if rows:
        _splits[(triton.cdiv(rows, _ROWS),)](
            o, lse, out, whole, splits, rows, dim, ROWS=_ROWS, DIM=triton.next_power_of_2(dim)
        )
    return out, whole
