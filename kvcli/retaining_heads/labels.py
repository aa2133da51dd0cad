"""What heads learn: for each unit of a text, how much the questions about it and their answers really look at it.

Two passes of the frozen model. The text is read by the engine itself (a fill that keeps everything, or that evicts,
for features as they are at inference), and the projections that heads see are recorded on the way. Then questions
and answers, or the text itself once more, attend to the whole text and a maximum over their queries is taken layer by
layer, a few queries at a time, so that nothing larger than :data:`kvcli.engine.observer._WORK` numbers ever exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcli.retaining_heads.module import RetainingHeads, joined


@dataclass
class Recorder:
    """Stands in for a model's heads during a fill and keeps what they would have seen.

    Attributes:
        heads: whose scores the fill evicts by; ``None`` where nothing is evicted.
        seen: per layer, joined features ``[n, (H + 2 H_kv) · D]`` of one chunk after the other.
    """

    layers: int
    heads: RetainingHeads | None = None

    def __post_init__(self) -> None:
        self.seen: list[list[Tensor]] = [[] for _ in range(self.layers)]

    def score(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`kvcli.types.Scorer`."""
        x = joined(q, k, v)
        self.seen[layer].append(x)
        if self.heads is None:
            return torch.zeros(k.shape[0], k.shape[1], device=k.device)
        scores: Tensor = self.heads(layer, x)
        return scores.detach()

    def features(self, layer: int) -> Tensor:
        """``[n, (H + 2 H_kv) · D]`` of a layer; empty for a layer that no policy scores."""
        seen = self.seen[layer]
        return torch.cat(seen) if seen else torch.empty(0, 0)
