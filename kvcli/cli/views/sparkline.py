"""Kept shares along a document, drawn with block characters: for ``/kv`` and ``kvcli kv``."""

from __future__ import annotations

from collections.abc import Sequence

from kvcli.documents import Document
from kvcli.documents.pages import with_label

WIDTH = 60
BARS = " ▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"


def bars(values: Sequence[float]) -> str:
    """One bar per value; the highest value fills the row."""
    return _drawn(values, max(values, default=0.0), BARS)


def shades(rows: Sequence[Sequence[float]]) -> list[str]:
    """One row of shades per row of values; the highest value of all is black."""
    top = max((max(row, default=0.0) for row in rows), default=0.0)
    return [_drawn(row, top, SHADES) for row in rows]


def ends(document: Document, width: int) -> str:
    """Labels for the left and right end of such a row: page numbers if there are pages."""
    first, last = document.spans[0], document.spans[-1]
    left, right = "start", "end"
    if first.page is not None and last.page is not None:
        left, right = (f"p. {with_label(span.page or 0, span.label)}" for span in (first, last))
    return f"{left}{right:>{max(0, width - len(left))}}"


def _drawn(values: Sequence[float], top: float, letters: str) -> str:
    most = len(letters) - 1
    return "".join(letters[min(most, round(most * v / top)) if top else 0] for v in values)
