"""Attention over buffers with a length per head: one pass with an online softmax."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _UNITS = 16, 32


@triton.jit
def _kernel(
    p_q, p_k, p_v, p_lengths, p_o, p_lse, rows, units, dim, scale,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    i_head, i_rows = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_rows, o_dim = i_rows * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    m_rows, m_dim = o_rows < rows, o_dim < dim
    at_q = (i_head * rows + o_rows)[:, None] * dim + o_dim[None, :]
    # [ROWS, DIM]
    b_q = tl.load(p_q + at_q, mask=m_rows[:, None] & m_dim[None, :], other=0.0).to(tl.float32) * scale
    length = tl.load(p_lengths + i_head)
    b_top = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_o = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, length, UNITS):
        o_units = start + tl.arange(0, UNITS)
        m_units = o_units < length
        at = (i_head * units + o_units)[:, None] * dim + o_dim[None, :]
        m_both = m_units[:, None] & m_dim[None, :]
        # [UNITS, DIM]
        b_k = tl.load(p_k + at, mask=m_both, other=0.0).to(tl.float32)
        b_v = tl.load(p_v + at, mask=m_both, other=0.0).to(tl.float32)
        # [ROWS, UNITS]
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_logits = tl.where(m_units[None, :], b_logits, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_logits, 1))
        b_weights = tl.exp(b_logits - b_new[:, None])
        b_old = tl.exp(b_top - b_new)
        b_sum = b_sum * b_old + tl.sum(b_weights, 1)
        b_o = b_o * b_old[:, None] + tl.dot(b_weights, b_v, input_precision="ieee")
        b_top = b_new
    empty = b_sum == 0
    b_o = b_o / tl.where(empty, 1.0, b_sum)[:, None]
    b_lse = tl.where(empty, float("-inf"), b_top + tl.log(tl.where(empty, 1.0, b_sum)))
    tl.store(p_o + at_q, b_o.to(p_o.dtype.element_ty), mask=m_rows[:, None] & m_dim[None, :])
    tl.store(p_lse + i_head * rows + o_rows, b_lse, mask=m_rows)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.varlen.ref.varlen_attention`."""
    heads, m, dim = q.shape
    kv_heads, units, _ = k.shape
    rows = heads // kv_heads * m
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(heads, m, dtype=torch.float32, device=q.device)
    _kernel[kv_heads, triton.cdiv(rows, _ROWS)](
        q.contiguous(), k.contiguous(), v.contiguous(), lengths, o, lse, rows, units, dim, scale,
        ROWS=_ROWS, UNITS=_UNITS, DIM=max(16, triton.next_power_of_2(dim)),
        num_stages=3 if dim <= 128 else 1,  # limited by the memory of consumer GPUs
    )  # fmt: skip
    return o, lse
