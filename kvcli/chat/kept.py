"""Where in a document the kept units lie, as numbers for a screen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcli.cache.context import Context


def shares(context: Context, edges: Sequence[int], sliding: Sequence[int | None]) -> list[float]:
    """Of each stretch of the text, the share of its units that is kept.

    Args:
        context: a read document.
        edges: token numbers, ascending, where stretches begin; the last one is where the last stretch ends.
        sliding: per layer, the width of its sliding window or ``None``.

    Returns:
        one number from 0 to 1 per stretch: the mean over KV heads of all layers without a sliding window, which
        keep what the policy chose (over all layers where there are no others).
    """
    bounds = torch.tensor(edges, dtype=torch.float64)
    full = [layer for layer, width in zip(context.layers, sliding, strict=True) if width is None]
    total = torch.zeros(len(edges) - 1, dtype=torch.float64)
    heads = 0
    for layer in full or context.layers:
        found = layer.pos.cpu()
        heads += found.shape[0]
        place = torch.bucketize(found.reshape(-1).double(), bounds, right=True) - 1
        inside = place[(place >= 0) & (place < len(total))]
        total += torch.bincount(inside, minlength=len(total)).double()
    return [float(x) for x in total / (bounds.diff().clamp(min=1) * max(heads, 1))]
