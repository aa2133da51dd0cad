"""Eviction from a limited pool in host memory (InfiniGen, arXiv 2406.19707, section 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

EvictionOrder = Literal["counter", "lru", "fifo"]
"""Evict the least often fetched unit, the least recently fetched, or the oldest."""

COUNTER_LIMIT = 255
"""If a head's largest counter exceeds this, all its counters are halved."""


def pool_scores(victims: EvictionOrder, scores: Tensor, fetched: Tensor, pos: Tensor) -> Tensor:
    """Score units after a step, higher is kept: float32 ``[H_kv, kept + new]``.

    Args:
        victims: which units are evicted first.
        scores: ``[H_kv, kept]``, the previous result for kept units.
        fetched: bool ``[H_kv, kept + new]``, the units that this step would fetch.
        pos: ``[H_kv, kept + new]``, positions in the document, ascending.
    """
    import torch

    kept = scores.shape[1]
    if victims == "fifo":
        return pos.float()
    if victims == "lru":
        before = torch.cat([scores, pos[:, kept:].float()], dim=1)
        return torch.where(fetched, pos[:, -1:].float(), before)
    counters = torch.cat([scores, scores.new_zeros(pos.shape[0], pos.shape[1] - kept)], dim=1) + fetched
    overflow = counters.amax(1, keepdim=True) > COUNTER_LIMIT
    return torch.where(overflow, counters.div(2).floor(), counters)
