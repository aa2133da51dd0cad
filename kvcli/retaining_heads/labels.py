"""Features for training: the projections that heads see during prefill.

The engine reads the text, with or without eviction, and a recorder stores each token's projections. The labels come
from :mod:`kvcli.engine.observer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcli.retaining_heads.module import RetainingHeads, joined


@dataclass
class LabelRecorder:
    """A replacement for a model's heads that records their inputs during prefill.

    Attributes:
        heads: the heads that determine evictions; ``None`` without eviction.
        seen: per layer, features ``[n, (H + 2 H_kv) · D]`` of each chunk.
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
        """Return a layer's features ``[n, (H + 2 H_kv) · D]``; empty for layers that no policy scores."""
        seen = self.seen[layer]
        return torch.cat(seen) if seen else torch.empty(0, 0)
