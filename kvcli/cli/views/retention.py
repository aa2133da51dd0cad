"""How much of each page or section of a document was kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kvcli.documents.blocks import Block, blocks

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.documents.document import Document
from kvcli.cache.retention import mean_retention


@dataclass(frozen=True)
class PageRetention:
    """A page, section or range of lines, and its kept share.

    ``start`` and ``end`` are token positions; ``share`` is from 0 to 1, the mean over KV heads and layers.
    """

    block: Block
    start: int
    end: int
    share: float


def page_retention(
    context: Context, document: Document, offsets: Sequence[tuple[int, int]], tokens: int, sliding: Sequence[int | None]
) -> list[PageRetention]:
    """The kept share of each page; of sections or ranges of lines if there are no pages.

    Args:
        context, sliding: as for :func:`mean_retention`.
        document: the processed document.
        offsets: character range of each token of the text (:meth:`kvcli.engine.prompt.Prompt.offsets`).
        tokens: number of all tokens, those of the template before the text included.
    """
    found, head = blocks(document), tokens - len(offsets)
    if not found:
        return []
    starts = [start for start, _ in offsets]
    edges = [head + bisect_left(starts, block.start) for block in found] + [tokens]
    kept = mean_retention(context, edges, sliding)
    return [PageRetention(b, a, z, share) for b, (a, z), share in zip(found, pairwise(edges), kept, strict=True)]
