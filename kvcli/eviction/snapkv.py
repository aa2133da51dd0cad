"""SnapKV: attention of the question (Li et al. 2024, arXiv 2404.14469), at fixed memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Snapkv(EvictionPolicy):
    """Keeps the units that the question attends to; every question needs its own prefill.

    The published observation window fits the last chunk only. Here the question follows each chunk as a probe, scores
    all units, and is dropped again; without a question the chunk's last tokens observe.

    Args:
        window: maximum number of observing queries.
        pool: width of the mean filter that smooths scores over neighbours; odd.
    """

    name: ClassVar[str] = "snapkv"
    scores_are_final: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    observers: ClassVar[int] = 128
    window: int = 64
    pool: int = 5

    def rescore(self, chunk: Chunk) -> Tensor:
        """Average and smooth the post-softmax attention of the observing queries: ``[H_kv, kept + new]``."""
        import torch.nn.functional as F

        rows = chunk.new + chunk.probe
        window = min(self.window, chunk.probe or chunk.new)
        mass = chunk.attention(rows - window, rows) / window
        return F.avg_pool1d(mass, self.pool, stride=1, padding=self.pool // 2, count_include_pad=False)
