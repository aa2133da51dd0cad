"""Blocks from a store, or from where the last step staged them, into staging slots."""

import torch
from torch import Tensor


def gather(store: Tensor, staged: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
    """Fill staging slots.

    Args:
        store: ``[H_kv, N, W]``, a block per row; in pinned host memory a card reads it as it lies.
        staged: ``[H_kv, S, W]``, what the last step staged.
        ids: int64 ``[H_kv, K]``, the blocks that are wanted; ``N`` for none.
        slots: int64 ``[H_kv, K]``, where the last step has them, -1 where it does not.

    Returns:
        ``[H_kv, K, W]``; 0 where no block is wanted.
    """
    kv_heads, count, width = store.shape
    out = staged.new_zeros(kv_heads, ids.shape[1], width)
    head = torch.arange(kv_heads, device=ids.device)[:, None].expand(ids.shape)
    hit, miss = slots >= 0, (slots < 0) & (ids < count)
    out[hit] = staged[head[hit], slots[hit]]
    out[miss] = store[head[miss], ids[miss]]
    return out
