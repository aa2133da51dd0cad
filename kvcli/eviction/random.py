"""Random eviction: the baseline that every scorer must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Random(EvictionPolicy):
    """Keeps random units, drawn per head; the same seed draws the same units.

    Args:
        seed: of the random numbers.
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def score(self, chunk: Chunk) -> Tensor:
        """Hash seed, layer, head and position to [0, 1), independent of the chunks: ``[H_kv, new]``."""
        from kvcli.utils.hashing import uniform

        position = chunk.pos[:, chunk.kept :].long()
        head = position.new_tensor(range(position.shape[0])).unsqueeze(1)
        return uniform(position, head, chunk.layer, (self.seed - 1) % 2**31)
