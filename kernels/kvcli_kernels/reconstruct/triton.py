"""Keys of selected blocks from a low-rank factorization, rotated; unrotated keys are never stored."""

import triton
import triton.language as tl
from torch import Tensor

_UNITS, _RANKS = 16, 32


@triton.jit
def _kernel(
    p_coefficients,
    p_basis,
    p_ids,
    p_pos,
    p_cos,
    p_sin,
    p_out,
    units,
    block,
    rows,
    rank,
    dim,
    PLACED: tl.constexpr,
    UNITS: tl.constexpr,
    RANKS: tl.constexpr,
    HALF: tl.constexpr,
):
    i_head, i_units = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_units, o_half = i_units * UNITS + tl.arange(0, UNITS), tl.arange(0, HALF)
    half = dim // 2
    ids = tl.load(p_ids + i_head * (units // block) + o_units // block, mask=o_units < units, other=-1)
    m_units, m_half = ids >= 0, o_half < half
    if tl.max(ids) < 0:
        return
    o_rows = ids * block + o_units % block
    places = tl.load(p_pos + i_head * rows + o_rows, mask=m_units, other=0).to(tl.int64) if PLACED else o_rows
    # [UNITS, HALF]
    b_first = tl.zeros([UNITS, HALF], tl.float32)
    b_second = tl.zeros([UNITS, HALF], tl.float32)
    for start in range(0, rank, RANKS):
        o_rank = start + tl.arange(0, RANKS)
        m_rank = o_rank < rank
        at = o_rows[:, None] * rank + o_rank[None, :]
        # [UNITS, RANKS]
        b_factors = tl.load(p_coefficients + at, mask=m_units[:, None] & m_rank[None, :], other=0.0).to(tl.float32)
        at = (i_head * rank + o_rank)[:, None] * dim + o_half[None, :]
        m_both = m_rank[:, None] & m_half[None, :]
        # [RANKS, HALF]
        b_low = tl.load(p_basis + at, mask=m_both, other=0.0).to(tl.float32)
        b_high = tl.load(p_basis + at + half, mask=m_both, other=0.0).to(tl.float32)
        b_first += tl.dot(b_factors, b_low, input_precision="ieee")
        b_second += tl.dot(b_factors, b_high, input_precision="ieee")
    m_out = m_units[:, None] & m_half[None, :]
    at = places[:, None] * dim + o_half[None, :]
    b_cos = tl.load(p_cos + at, mask=m_out, other=0.0).to(tl.float32)
    b_sin = tl.load(p_sin + at, mask=m_out, other=0.0).to(tl.float32)
    b_cos_high = tl.load(p_cos + at + half, mask=m_out, other=0.0).to(tl.float32)
    b_sin_high = tl.load(p_sin + at + half, mask=m_out, other=0.0).to(tl.float32)
    at = (i_head * units + o_units)[:, None] * dim + o_half[None, :]
    kind = p_out.dtype.element_ty
    tl.store(p_out + at, (b_first * b_cos - b_second * b_sin).to(kind), mask=m_out)
    tl.store(p_out + at + half, (b_second * b_cos_high + b_first * b_sin_high).to(kind), mask=m_out)


def reconstruct(
    coefficients: Tensor, basis: Tensor, ids: Tensor, pos: Tensor | None, cos: Tensor, sin: Tensor, out: Tensor
) -> Tensor:
    """See :func:`kvcli_kernels.reconstruct.ref.reconstruct`; the grid does not depend on ``ids``."""
    kv_heads, rank, dim = basis.shape
    units = out.shape[1] * out.shape[2]
    if not out.is_contiguous():
        raise ValueError(f"blocks with strides {out.stride()} cannot be written to")
    given = [x.contiguous() for x in (coefficients, basis, ids, ids if pos is None else pos, cos, sin)]
    rows = 0 if pos is None else pos.shape[1]
    sizes = {"PLACED": pos is not None, "UNITS": _UNITS, "RANKS": _RANKS}
    sizes["HALF"] = max(16, triton.next_power_of_2(dim // 2))
    grid = (kv_heads, triton.cdiv(units, _UNITS))
    _kernel[grid](*given, out, units, out.shape[2], rows, rank, dim, **sizes)
    return out
