"""Trained retaining heads decide (Locret, Huang et al. 2024, arXiv 2410.01805)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Locret(EvictionPolicy):
    """Keeps the units to which the model's retaining heads give the highest scores.

    A unit is scored once, from its own query, key and value; its stored score is the mean over its neighbours. The
    kept set of the whole text is the best ``budget`` of all scores, whatever comes later (but for stabilizers).

    Args:
        pool: how many neighbours share a score, the unit itself included; odd. 1 is Locret as published.
    """

    name: ClassVar[str] = "locret"
    needs_heads: ClassVar[bool] = True
    pool: int = 17

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < 1 or self.pool % 2 == 0:
            raise UsageError(f"locret: pool must be odd and 1 or more, got {self.pool}", "pool=17")

    @property
    def lookahead(self) -> int:
        """Half of the neighbours are later ones."""
        return self.pool // 2

    def score(self, chunk: Chunk) -> Tensor:
        """The heads' scores of the chunk's own units: float32 ``[H_kv, new]``."""
        assert chunk.heads is not None  # engine.start sees to that
        return chunk.heads.score(chunk.layer, chunk.q, chunk.new_k, chunk.new_v)

    def rescore(self, chunk: Chunk) -> Tensor:
        """Scores of all units at hand, smoothed: float32 ``[H_kv, kept + new]``."""
        from kvcli.eviction.smoothing import smooth

        return smooth(chunk, self.score(chunk), self.pool)
