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
        position = chunk.pos[:, chunk.kept :].long()
        head = position.new_tensor(range(position.shape[0])).unsqueeze(1)
        x = (
            (position + 1) * 0x9E3779B1
            + (head + 1) * 0x85EBCA77
            + (chunk.layer + 1) * 0xC2B2AE3D
            + (self.seed * 0x27D4EB2F & 0x7FFFFFFF)
        )
        for _ in range(3):  # an integer finalizer; products are kept below 2^63 by masking to 31 bits first
            x = ((x & 0x7FFFFFFF) ^ ((x & 0x7FFFFFFF) >> 15)) * 0x45D9F3B
        return (x & 0xFFFFFF).float() / 2**24
