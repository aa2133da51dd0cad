"""Where in a document the kept units lie, as numbers for a screen or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvcli.cache.context import Context


def retention_map(context: Context, edges: Sequence[int]) -> list[list[float]]:
    """Of each layer and each stretch of the text, the share of its units that is kept, the mean over KV heads.

    Args:
        context: a read document.
        edges: token numbers, ascending, where stretches begin; the last one is where the last stretch ends.

    Returns:
        ``[layers][stretches]``, numbers from 0 to 1.
    """
    bounds = torch.tensor(edges, dtype=torch.float64)
    rows = []
    for layer in context.layers:
        found = layer.pos.cpu()
        place = torch.bucketize(found.reshape(-1).double(), bounds, right=True) - 1
        inside = place[(place >= 0) & (place < len(edges) - 1)]
        units = torch.bincount(inside, minlength=len(edges) - 1).double()
        rows.append((units / (bounds.diff().clamp(min=1) * max(1, found.shape[0]))).tolist())
    return rows


def mean_retention(context: Context, edges: Sequence[int], sliding: Sequence[int | None]) -> list[float]:
    """As :func:`retention_map`, the mean over layers: those without a sliding window of their own, which keep what the
    policy chose, or all where there are no others.

    Args:
        context, edges: as for :func:`retention_map`.
        sliding: per layer, the width of its sliding window or ``None``.
    """
    rows = retention_map(context, edges)
    chosen = [row for row, width in zip(rows, sliding, strict=True) if width is None] or rows
    return [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]


def equal_bins(tokens: int, count: int) -> list[int]:
    """Edges of ``count`` stretches of the same length, or of as many as there are tokens."""
    count = max(1, min(count, tokens))
    return [tokens * i // count for i in range(count + 1)]
