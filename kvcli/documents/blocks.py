"""A document in pieces for looking things up: pages, or sections and runs of lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from kvcli.documents.document import Document, Span

SIZE = 1500
"""Characters of a run of lines, about: those of a printed page."""


@dataclass(frozen=True)
class Block:
    """The characters ``start`` to ``end`` of the document's text, which begin in ``span``, on its line ``line``.

    ``last`` is the line it ends on. Of a page, marks of kvcli's own in front of it are not part.
    """

    start: int
    end: int
    span: Span
    line: int
    last: int


def blocks(document: Document, size: int = SIZE) -> list[Block]:
    """The pages of a document, and of its files without pages the sections, cut into runs of lines of about ``size``.

    Blocks are in order, do not overlap, and together hold all that is not kvcli's own mark or white space.
    """
    found = []
    for (_, page, _), group in groupby(document.spans, key=lambda s: (s.file, s.page, None if s.page else s.section)):
        spans = list(group)
        start, end = spans[0].body, spans[-1].end
        cuts = [start, end] if page is not None else [*_cuts(document.text, start, end, size), end]
        for a, b in pairwise(cuts):
            body = document.text[a:b]
            a, b = a + len(body) - len(body.lstrip()), b - len(body) + len(body.rstrip())
            if a < b:
                found.append(Block(a, b, document.at(a), document.line(a), document.line(b - 1)))
    return found


def _cuts(text: str, start: int, end: int, size: int) -> Iterator[int]:
    """Where blocks begin: at a line's beginning as soon as ``size`` is reached, anywhere in a line that never ends."""
    while start < end:
        yield start
        line = text.find("\n", min(end, start + size), min(end, start + 2 * size))
        start = line + 1 if line >= 0 else start + 2 * size
