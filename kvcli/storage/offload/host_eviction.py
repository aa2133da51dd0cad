"""Which units make room where host memory has a limit (InfiniGen, arXiv 2406.19707, section 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

EvictionOrder = Literal["counter", "lru", "fifo"]
"""The unit that was wanted least often, the one not wanted for longest, or the oldest."""

MOST = 255
"""Where a head's largest counter passes this, all counters of the head are halved."""


def worth(victims: EvictionOrder, scores: Tensor, wanted: Tensor, pos: Tensor) -> Tensor:
    """How much units are worth keeping after a step, higher is kept: float32 ``[H_kv, kept + new]``.

    Args:
        victims: who goes first.
        scores: ``[H_kv, kept]``, what this function said of kept units after the step before.
        wanted: bool ``[H_kv, kept + new]``, the units that this step would fetch.
        pos: ``[H_kv, kept + new]``, places in the document, ascending.
    """
    import torch

    kept = scores.shape[1]
    if victims == "fifo":
        return pos.float()
    if victims == "lru":
        before = torch.cat([scores, pos[:, kept:].float()], dim=1)
        return torch.where(wanted, pos[:, -1:].float(), before)
    counters = torch.cat([scores, scores.new_zeros(pos.shape[0], pos.shape[1] - kept)], dim=1) + wanted
    full = counters.amax(1, keepdim=True) > MOST
    return torch.where(full, counters.div(2).floor(), counters)
