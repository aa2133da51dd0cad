"""Compaction of keys, values, positions and scores in one pass, with a program per head and block of slots."""

import triton
import triton.language as tl
from torch import Tensor

from kvcli_kernels.compact.ref import Units

_SLOTS = 16


@triton.jit
def _kernel(
    p_index, p_k, p_v, p_pos, p_scores, p_k_out, p_v_out, p_pos_out, p_scores_out,
    slots, dim,
    stride_k, stride_v, stride_pos, stride_scores, stride_k_out, stride_v_out, stride_pos_out, stride_scores_out,
    SLOTS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    i_head, i_slots = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_slots, o_dim = i_slots * SLOTS + tl.arange(0, SLOTS), tl.arange(0, DIM)
    m_slots, m_dim = o_slots < slots, o_dim < dim
    m = m_slots[:, None] & m_dim[None, :]
    b_unit = tl.load(p_index + i_head * slots + o_slots, mask=m_slots, other=0).to(tl.int64)
    tl.store(
        p_pos_out + i_head * stride_pos_out + o_slots,
        tl.load(p_pos + i_head * stride_pos + b_unit, mask=m_slots),
        mask=m_slots,
    )
    tl.store(
        p_scores_out + i_head * stride_scores_out + o_slots,
        tl.load(p_scores + i_head * stride_scores + b_unit, mask=m_slots),
        mask=m_slots,
    )
    o_from = b_unit[:, None] * dim + o_dim[None, :]
    o_to = o_slots.to(tl.int64)[:, None] * dim + o_dim[None, :]
    tl.store(p_v_out + i_head * stride_v_out + o_to, tl.load(p_v + i_head * stride_v + o_from, mask=m), mask=m)
    # [SLOTS, DIM]
    b_k = tl.load(p_k + i_head * stride_k + o_from, mask=m)
    tl.store(p_k_out + i_head * stride_k_out + o_to, b_k, mask=m)


def compact(index: Tensor, units: Units, out: Units) -> None:
    """See :func:`kvcli_kernels.compact.ref.compact`; rows of a head are adjacent in memory."""
    heads, slots = index.shape
    if not slots:
        return
    dim = units.k.shape[2]
    source = [t if t[0].is_contiguous() else t.contiguous() for t in units]
    _kernel[heads, triton.cdiv(slots, _SLOTS)](
        index.contiguous(), *source, *out, slots, dim,
        *(t.stride(0) for t in source), *(t.stride(0) for t in out),
        SLOTS=_SLOTS, DIM=triton.next_power_of_2(dim),
    )  # fmt: skip
