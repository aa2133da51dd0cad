"""SnapKV: attention of the question (Li et al. 2024, arXiv 2404.14469), at fixed memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor

Filter = Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True)
class Snapkv(EvictionPolicy):
    """Keeps the units that the question attends to; every question needs its own prefill.

    The published observation window fits the last chunk only. Here the question follows each chunk as a probe, scores
    all units, and is dropped again; without a question the chunk's last tokens observe.

    Args:
        window: maximum number of observing queries.
        pool: width of the filter that smooths scores over neighbours; odd.
        how: the filter: ``mean`` or ``max``.
    """

    name: ClassVar[str] = "snapkv"
    scores_are_final: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    observers: ClassVar[int] = 128
    window: int = 64
    pool: int = 5
    how: Filter = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UsageError(f"{self.name}: window must be 1 or more, got {self.window}", "window=64")
        if self.pool < 1 or self.pool % 2 == 0:
            raise UsageError(f"{self.name}: pool must be odd and 1 or more, got {self.pool}", "pool=5")

    def rescore(self, chunk: Chunk) -> Tensor:
        """Average and smooth the post-softmax attention of the observing queries: ``[H_kv, kept + new]``."""
        from kvcli.eviction import smoothing

        rows = chunk.new + chunk.probe
        window = min(self.window, chunk.probe or chunk.new)
        mass = chunk.attention(rows - window, rows) / window
        return smoothing.maximum(mass, self.pool) if self.how == "max" else smoothing.mean(mass, self.pool)
