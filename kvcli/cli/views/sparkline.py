"""Where the kept units of a text lie, drawn with letters: for ``/kv`` and ``kvcli kv``."""

from __future__ import annotations

from collections.abc import Sequence

from kvcli.documents import Document

WIDTH = 60
BARS = " ▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"


def bars(values: Sequence[float]) -> str:
    """One letter per value, as high as it is; the highest fills its row."""
    return _drawn(values, max(values, default=0.0), BARS)


def shades(rows: Sequence[Sequence[float]]) -> list[str]:
    """One row of letters per row of values, as dark as they are; the darkest of all is full."""
    top = max((max(row, default=0.0) for row in rows), default=0.0)
    return [_drawn(row, top, SHADES) for row in rows]


def ends(document: Document, width: int) -> str:
    """What stands at the left and at the right end of such a row: pages, where there are any."""
    first, last = document.spans[0].page, document.spans[-1].page
    left, right = ("start", "end") if first is None or last is None else (f"p. {first}", f"p. {last}")
    return f"{left}{right:>{max(0, width - len(left))}}"


def _drawn(values: Sequence[float], top: float, letters: str) -> str:
    most = len(letters) - 1
    return "".join(letters[min(most, round(most * v / top)) if top else 0] for v in values)
