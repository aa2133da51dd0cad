"""Full cache: the reference for every other policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Full(EvictionPolicy):
    """Keeps every unit, as the model was trained; memory grows with the document."""

    name: ClassVar[str] = "full"
    budget: None = None

    def score(self, chunk: Chunk) -> Tensor:
        """Return zeros, as nothing is evicted: ``[H_kv, new]``."""
        return chunk.scores.new_zeros(chunk.new_k.shape[0], chunk.new)
