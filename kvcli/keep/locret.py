"""Trained retaining heads decide (Locret, Huang et al. 2024, arXiv 2410.01805)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.keep.base import Chunk, Keep

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Locret(Keep):
    """Keeps the units to which the model's retaining heads give the highest scores.

    A unit is scored once, from its own query, key and value, and keeps that score: the kept set of the whole text is
    the best ``budget`` of all scores, whatever comes later (but for stabilizers).
    """

    name: ClassVar[str] = "locret"
    trained: ClassVar[bool] = True

    def score(self, chunk: Chunk) -> Tensor:
        """The heads' scores of the chunk's own units: float32 ``[H_kv, new]``."""
        assert chunk.heads is not None  # engine.start sees to that
        return chunk.heads.score(chunk.layer, chunk.q, chunk.k[:, chunk.kept :], chunk.v[:, chunk.kept :])
