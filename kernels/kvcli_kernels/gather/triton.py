"""Gathering with a program per slot and part of a row: from the staged blocks on a hit, from the store on a miss."""

import triton
import triton.language as tl
from torch import Tensor

_WIDTH = 256


@triton.jit
def _kernel(p_store, p_staged, p_ids, p_slots, p_out, stride, count, old, wanted, width, WIDTH: tl.constexpr):
    i_head, i_slot, i_part = (tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2))
    o_width = i_part * WIDTH + tl.arange(0, WIDTH)
    number = tl.load(p_ids + i_head * wanted + i_slot)
    slot = tl.load(p_slots + i_head * wanted + i_slot)
    m_hit = o_width < tl.where(slot >= 0, width, 0)
    m_miss = o_width < tl.where((slot < 0) & (number < count), width, 0)
    # [WIDTH]
    b_hit = tl.load(p_staged + (i_head * old + slot) * width + o_width, mask=m_hit, other=0.0)
    b_miss = tl.load(p_store + i_head * stride + number * width + o_width, mask=m_miss, other=0.0)
    tl.store(
        p_out + (i_head * wanted + i_slot) * width + o_width, tl.where(slot >= 0, b_hit, b_miss), mask=m_hit | m_miss
    )


def gather(store: Tensor, staged: Tensor, ids: Tensor, slots: Tensor, out: Tensor) -> Tensor:
    """See :func:`kvcli_kernels.gather.ref.gather`; rows of ``store`` are adjacent within a head.

    ``staged`` and ``out`` are contiguous.
    """
    kv_heads, count, width = store.shape
    wanted = ids.shape[1]
    if store.stride()[1:] != (width, 1) or not (staged.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"rows with strides {store.stride()} cannot be gathered")
    grid = (kv_heads, wanted, triton.cdiv(width, _WIDTH))
    numbers = (store.stride(0), count, staged.shape[1], wanted, width)
    _kernel[grid](store, staged, ids.contiguous(), slots.contiguous(), out, *numbers, WIDTH=_WIDTH)
    return out
