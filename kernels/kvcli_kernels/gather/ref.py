"""Gathering of blocks from a store, or from the last step's staging slots, to staging slots."""

from torch import Tensor


def gather(store: Tensor, staged: Tensor, ids: Tensor, slots: Tensor, out: Tensor) -> Tensor:
    """Copy blocks to staging slots.

    Args:
        store: ``[H_kv, N, W]``, a block per row; a GPU reads pinned host memory directly.
        staged: ``[H_kv, S, W]``, the last step's blocks.
        ids: int64 ``[H_kv, K]``, the selected blocks; ``N`` for none.
        slots: int64 ``[H_kv, K]``, their slots in ``staged``, -1 if not staged.
        out: ``[H_kv, K, W]``; unchanged for slots without a block. Must not overlap ``staged``, unless nothing is
            staged.

    Returns:
        ``out``.
    """
    heads, at = (slots >= 0).nonzero(as_tuple=True)
    out[heads, at] = staged[heads, slots[heads, at]]
    heads, at = ((slots < 0) & (ids < store.shape[1])).nonzero(as_tuple=True)
    there = (heads.to(store.device), ids[heads, at].to(store.device))
    out[heads, at] = store[there].to(out.device)
    return out
