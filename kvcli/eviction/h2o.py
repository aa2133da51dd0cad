"""Heavy hitters (H2O, Zhang et al. 2023, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class H2o(EvictionPolicy):
    """Keeps the units with the most accumulated attention; half of the budget goes to the newest ones.

    Every later query adds to a unit's attention, so scores are never final.
    """

    name: ClassVar[str] = "h2o"
    scores_are_final: ClassVar[bool] = False
    observers: ClassVar[int] = 128

    @property
    def recent(self) -> int:
        """Half of the budget, as published, unless ``stabilizers`` is set."""
        return (self.budget or 0) // 2 if self.stabilizers is None else self.stabilizers

    @property
    def newest(self) -> int:
        """The recent half, also kept at the end of the text."""
        return self.recent

    def rescore(self, chunk: Chunk) -> Tensor:
        """Add the chunk's post-softmax attention: ``[H_kv, kept + new]``."""
        mass = chunk.attention(0, chunk.new)
        mass[:, : chunk.kept] += chunk.scores
        return mass
