"""Lines of a page while they are put together, and which of them are beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvcli.documents.pdf.words import Word


@dataclass(slots=True)
class Line:
    """One line of a page; ``first`` is the width of its first word ``head``, ``right`` the right edge of its column.

    ``pieces`` are its words, each with what separates it from the one before; ``text`` is made of them at the end.
    """

    pieces: list[tuple[str, str]]
    x0: float
    y0: float
    x1: float
    y1: float
    first: float
    head: Word
    tail: Word
    characters: int
    column: int = 0
    right: float = 0.0
    text: str = ""

    @property
    def height(self) -> float:
        return self.y1 - self.y0


def same_row(line: Line, y0: float, y1: float) -> bool:
    """Whether something from ``y0`` to ``y1`` stands on ``line``: at half of the smaller one's height."""
    return min(line.y1, y1) - max(line.y0, y0) >= 0.5 * min(line.height, max(y1 - y0, 0.1))


def clusters(segments: Sequence[Line]) -> list[list[Line]]:
    """Segments that stand on one height, from top to bottom, each row from left to right."""
    rows: list[list[Line]] = []
    for segment in sorted(segments, key=lambda s: (s.y0 + s.y1, s.x0)):
        if rows and same_row(rows[-1][0], segment.y0, segment.y1):
            rows[-1].append(segment)
        else:
            rows.append([segment])
    for row in rows:
        row.sort(key=lambda s: s.x0)
    return rows
