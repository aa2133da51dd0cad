"""Selection of surviving units."""

import torch
from torch import Tensor


def select(scores: Tensor, budget: int, *, sinks: Tensor | None = None, recent: int = 0) -> Tensor:
    """Select the ``budget`` best units of each head, in document order. The scores do not change.

    Args:
        scores: float32 ``[H_kv, u]`` with ``u >= budget``.
        budget: units to keep per head.
        sinks: bool ``[H_kv, u]``, units that are always kept.
        recent: number of newest units that are always kept.

    Returns:
        int64 ``[H_kv, budget]``, strictly increasing in each row.
    """
    ranked = scores.clone()
    if sinks is not None:
        ranked.masked_fill_(sinks, float("inf"))
    if recent:
        ranked[:, -recent:] = float("inf")
    return torch.topk(ranked, budget, dim=1, sorted=False).indices.sort(dim=1).values


def gather(units: Tensor, index: Tensor) -> Tensor:
    """Return the units ``index [H_kv, c]`` of ``[H_kv, u, D]``: ``[H_kv, c, D]``."""
    return units.gather(1, index.unsqueeze(-1).expand(-1, -1, units.shape[2]))
