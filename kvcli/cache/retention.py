"""Retention maps: which parts of a document were kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvcli.cache.context import Context


def retention_map(context: Context, edges: Sequence[int]) -> list[list[float]]:
    """Compute each layer's share of kept units per interval of the text, averaged over KV heads.

    Args:
        context: a frozen document.
        edges: ascending token indices: the intervals' starts, and the end of the last.

    Returns:
        ``[layers][intervals]``, from 0 to 1.
    """
    bounds = torch.tensor(edges, dtype=torch.float64)
    rows = []
    for layer in context.layers:
        kept_positions = layer.pos.cpu()
        interval = torch.bucketize(kept_positions.reshape(-1).double(), bounds, right=True) - 1
        inside = interval[(interval >= 0) & (interval < len(edges) - 1)]
        units = torch.bincount(inside, minlength=len(edges) - 1).double()
        rows.append((units / (bounds.diff().clamp(min=1) * max(1, kept_positions.shape[0]))).tolist())
    return rows


def mean_retention(context: Context, edges: Sequence[int], sliding: Sequence[int | None]) -> list[float]:
    """Average :func:`retention_map` over full-attention layers, or over all if every layer has a sliding window.

    Args:
        context, edges: as for :func:`retention_map`.
        sliding: per layer, the width of its sliding window or ``None``.
    """
    rows = retention_map(context, edges)
    chosen = [row for row, width in zip(rows, sliding, strict=True) if width is None] or rows
    return [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]


def equal_bins(tokens: int, count: int) -> list[int]:
    """Return the edges of ``count`` intervals of equal length, at most one per token."""
    count = max(1, min(count, tokens))
    return [tokens * i // count for i in range(count + 1)]
