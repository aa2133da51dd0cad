"""StreamingLLM: sinks and the newest units (Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Streaming(EvictionPolicy):
    """Keeps the first four tokens and the newest ones, and nothing in between."""

    name: ClassVar[str] = "streaming"
    sinks: int = 4

    def score(self, chunk: Chunk) -> Tensor:
        """Score later units higher: ``[H_kv, new]``."""
        return chunk.pos[:, chunk.kept :].float()
