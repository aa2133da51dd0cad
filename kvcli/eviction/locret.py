"""Locret: trained retaining heads (Huang et al. 2024, arXiv 2410.01805)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Locret(EvictionPolicy):
    """Keeps the units with the highest scores of the model's retaining heads.

    A unit is scored once, from its own query, key and value; its stored score is the mean over its neighbours. Up to
    the stabilizers, the kept set is the best ``budget`` of all scores, whatever comes later.

    Args:
        pool: number of neighbours that share a score, the unit included; odd. 1 is Locret as published.
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
        """Half of the neighbours, which follow the unit."""
        return self.pool // 2

    def score(self, chunk: Chunk) -> Tensor:
        """Score the chunk's new units with the retaining heads: float32 ``[H_kv, new]``."""
        assert chunk.heads is not None  # new_prefill_cache checks
        return chunk.heads.score(chunk.layer, chunk.q, chunk.new_k, chunk.new_v)

    def rescore(self, chunk: Chunk) -> Tensor:
        """Smooth the scores of all units: float32 ``[H_kv, kept + new]``."""
        from kvcli.eviction.smoothing import smooth

        return smooth(chunk, self.score(chunk), self.pool)

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: the last scores too."""
        return super().state_nbytes(spec, units) + 4 * spec.kv_heads * (self.pool - 1)
