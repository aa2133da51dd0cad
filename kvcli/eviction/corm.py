"""CORM: what no recent query looks at may go (Dai et al. 2024, arXiv 2404.15949)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

VOTE = "vote"
"""Name of the running statistic: position of each unit's last vote, or -1; int32 ``[H_kv, c]``."""


@dataclass(frozen=True, kw_only=True)
class Corm(EvictionPolicy):
    """Evicts a unit as soon as none of the last queries gave it an equal share of its attention, within the budget.

    A unit is major for a query that sees ``t`` units and gives it at least ``1/t``; one query head of its group is
    enough. As published there is no budget. Here all KV heads of a layer keep the same number of units. The head with
    most units to keep sets it, up to the budget. The others fill up with units that had a vote most recently.

    Args:
        window: number of last queries whose votes count.
        share: factor on the equal share; 0 evicts nothing before the budget is full.
    """

    name: ClassVar[str] = "corm"
    scores_are_final: ClassVar[bool] = False
    evicts_early: ClassVar[bool] = True
    observers: ClassVar[int] = 128
    window: int = 256
    share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UsageError(f"corm: window must be 1 or more, got {self.window}", "window=256")
        if not 0 <= self.share < float("inf"):
            raise UsageError(f"corm: share must be 0 or more, got {self.share}", "share=1")

    @property
    def recent(self) -> int:
        """The published 256 units, or a quarter of a small budget, unless ``stabilizers`` is set."""
        return min(256, super().recent) if self.stabilizers is None else self.stabilizers

    @property
    def newest(self) -> int:
        """The recent units, also kept at the end of the text."""
        return self.recent

    def rescore(self, chunk: Chunk) -> Tensor:
        """Take the votes of the chunk's last queries and sum their attention: ``[H_kv, kept + new]``."""
        import torch
        import torch.nn.functional as F

        vote = F.pad(chunk.state.get(VOTE, chunk.pos[:, : chunk.kept] * 0 - 1), (0, chunk.new), value=-1)
        mass = torch.zeros(chunk.pos.shape, device=chunk.pos.device)
        units = chunk.kept + chunk.new
        for first, logits in chunk.blocks(max(0, chunk.new - self.window), chunk.new):
            weights = torch.softmax(logits.float(), dim=-1)[..., :units]
            rows = torch.arange(first, first + weights.shape[2], device=vote.device)
            visible = chunk.kept + rows[:, None] + 1
            seen = torch.arange(units, device=vote.device) < visible
            major = ((weights >= self.share / visible) & seen).any(dim=1)
            last = (major * (chunk.start + rows[:, None] + 1)).amax(dim=1) - 1
            vote = torch.maximum(vote, last.int())
            mass += weights.sum(dim=(1, 2))
        chunk.state[VOTE] = vote
        return mass / (chunk.q.shape[0] // chunk.pos.shape[0])

    def choose(self, chunk: Chunk, scores: Tensor, budget: int, recent: int) -> Tensor:
        """Keep units with a recent vote: the most recent votes first, then the most attention."""
        import torch

        vote, now = chunk.state[VOTE], chunk.start + chunk.new
        age = (now - 1 - vote).clamp(max=self.window).where(vote >= 0, self.window)
        protected = chunk.pos < self.sinks
        protected[:, protected.shape[1] - recent :] = True
        wanted = protected | (age < self.window)
        count = min(budget, int(wanted.sum(dim=1).max()))
        rank = -age.double() * (1 + float(scores.max())) + scores
        index = torch.topk(rank.masked_fill(protected, float("inf")), count, dim=1, sorted=False).indices
        index = index.sort(dim=1).values
        chunk.state[VOTE] = vote.gather(1, index)
        return index

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: a vote per unit too."""
        return super().state_nbytes(spec, units) + 4 * spec.kv_heads * units
