"""Key norms (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Knorm(EvictionPolicy):
    """Keeps the keys with the smallest norm, which are observed to draw the most attention."""

    name: ClassVar[str] = "knorm"

    def score(self, chunk: Chunk) -> Tensor:
        """Compute ``-||k||``, which RoPE does not change: ``[H_kv, new]``."""
        import torch

        norms: Tensor = torch.linalg.vector_norm(chunk.new_k.float(), dim=-1)
        return -norms
