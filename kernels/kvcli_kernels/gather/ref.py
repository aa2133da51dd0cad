"""Blocks from a store, or from where the last step staged them, into staging slots."""

from torch import Tensor


def gather(store: Tensor, staged: Tensor, ids: Tensor, slots: Tensor, out: Tensor) -> Tensor:
    """Fill staging slots.

    Args:
        store: ``[H_kv, N, W]``, a block per row; in pinned host memory a card reads it as it lies.
        staged: ``[H_kv, S, W]``, what the last step staged.
        ids: int64 ``[H_kv, K]``, the blocks that are wanted; ``N`` for none.
        slots: int64 ``[H_kv, K]``, where the last step has them, -1 where it does not.
        out: ``[H_kv, K, W]``; stays as it is where no block is wanted. Shares no memory with ``staged`` but where
            there are no hits.

    Returns:
        ``out``.
    """
    heads, at = (slots >= 0).nonzero(as_tuple=True)
    out[heads, at] = staged[heads, slots[heads, at]]
    heads, at = ((slots < 0) & (ids < store.shape[1])).nonzero(as_tuple=True)
    there = (heads.to(store.device), ids[heads, at].to(store.device))
    out[heads, at] = store[there].to(out.device)
    return out
