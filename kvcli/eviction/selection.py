"""Selection: from scores and protections to the units that stay."""

import torch
from torch import Tensor


def select(scores: Tensor, budget: int, *, sinks: Tensor | None = None, recent: int = 0) -> Tensor:
    """The ``budget`` best units of each head, in their old order.

    Protection overrides a copy of the scores; the scores themselves stay what they are.

    Args:
        scores: float32 ``[H_kv, u]`` with ``u >= budget``.
        budget: units to keep per head.
        sinks: bool ``[H_kv, u]``, units that stay in any case.
        recent: how many of the newest units stay in any case.

    Returns:
        int64 ``[H_kv, budget]``, strictly increasing in each row.
    """
    ranked = scores.clone()
    if sinks is not None:
        ranked.masked_fill_(sinks, float("inf"))
    if recent:
        ranked[:, -recent:] = float("inf")
    return torch.topk(ranked, budget, dim=1, sorted=False).indices.sort(dim=1).values
