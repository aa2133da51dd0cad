"""Where in a document the kept units lie, as numbers for a screen or a picture."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from kvcli.documents.blocks import Block, blocks

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.documents.document import Document


@dataclass(frozen=True)
class Page:
    """A page, section or run of lines, and how much of it is kept.

    ``start`` and ``end`` are token numbers of the reading; ``share`` is from 0 to 1, the mean over KV heads and layers.
    """

    block: Block
    start: int
    end: int
    share: float


def heat(context: Context, edges: Sequence[int]) -> list[list[float]]:
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


def shares(context: Context, edges: Sequence[int], sliding: Sequence[int | None]) -> list[float]:
    """As :func:`heat`, the mean over layers: those without a sliding window of their own, which keep what the policy
    chose, or all where there are no others.

    Args:
        context, edges: as for :func:`heat`.
        sliding: per layer, the width of its sliding window or ``None``.
    """
    rows = heat(context, edges)
    chosen = [row for row, width in zip(rows, sliding, strict=True) if width is None] or rows
    return [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]


def even(tokens: int, count: int) -> list[int]:
    """Edges of ``count`` stretches of the same length, or of as many as there are tokens."""
    count = max(1, min(count, tokens))
    return [tokens * i // count for i in range(count + 1)]


def pages(
    context: Context, document: Document, offsets: Sequence[tuple[int, int]], tokens: int, sliding: Sequence[int | None]
) -> list[Page]:
    """How much of each page is kept; of sections and runs of lines, where there are no pages.

    Args:
        context, sliding: as for :func:`shares`.
        document: what was read.
        offsets: of each token of the text its characters (:meth:`kvcli.engine.prompt.Prompt.offsets`); they are the
        last ones
            of the reading.
        tokens: of the reading, the template's head included.
    """
    found, head = blocks(document), tokens - len(offsets)
    if not found:
        return []
    starts = [start for start, _ in offsets]
    edges = [head + bisect_left(starts, block.start) for block in found] + [tokens]
    kept = shares(context, edges, sliding)
    return [Page(b, a, z, share) for b, (a, z), share in zip(found, pairwise(edges), kept, strict=True)]
