"""From words with places to lines in reading order: rows, columns, and which lines belong to one paragraph.

A content stream may draw its words in any order, so only places count. A page is read row by row, unless a gutter
splits it into columns of prose; columns of short cells are a table, and a table is read row by row.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from kvcli.documents.pdf.pdfium import HYPHEN, Word

PROSE_CHARACTERS = 18
"""Length from which a line is prose; the cells of a table are shorter."""

PROSE_LINES = 5
"""Fewest lines of prose that make a column."""

GAP = 1.5
"""A gap between words that is wider than this, in line heights, separates cells or columns."""

DEPTH = 3
"""Columns within columns: four columns are three cuts."""

SIDEWAYS = -1000.0
"""The height given to lines that are not upright."""

LINES = 5_000
"""Lines of one page that are laid out; beyond, the page is read as it was written."""


@dataclass
class Line:
    """One line of a page; ``first`` is the width of its first word, ``right`` the right edge of its column."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    first: float
    column: int = 0
    right: float = 0.0

    @property
    def height(self) -> float:
        return self.y1 - self.y0


def lines(words: Sequence[Word]) -> list[Line]:
    """The lines of a page in the order a person reads them; what stands sideways in a margin comes last."""
    turns = Counter(w[5] for w in words).most_common(1)
    usual = turns[0][0] if turns else 0
    found = _upright([_turned(w, usual) for w in words if w[5] == usual])
    for turn in sorted({w[5] for w in words} - {usual}):
        aside = _upright([_turned(w, turn) for w in words if w[5] == turn])
        for line in aside:
            line.column += 1 + max((other.column for other in found), default=0)
            line.y0 = line.y1 = SIDEWAYS  # nowhere among the others' heights
        found += aside
    return found


def _turned(word: Word, turns: int) -> Word:
    """The place of a word on a page that is turned so that it is upright."""
    text, x0, y0, x1, y1, _ = word
    if turns == 1:
        return text, -y1, x0, -y0, x1, 0
    if turns == 2:
        return text, -x1, -y1, -x0, -y0, 0
    return (text, y0, -x1, y1, -x0, 0) if turns == 3 else word


def _upright(words: Sequence[Word]) -> list[Line]:
    segments = _segments(words)
    if len(segments) > LINES:
        return segments
    found: list[Line] = []
    for column, region in enumerate(_regions(segments, DEPTH)):
        rows = _rows(region)
        edges = sorted(r.x1 for r in rows)
        right = edges[min(len(edges) - 1, int(0.95 * len(edges)))]
        for row in rows:
            row.column, row.right = column, right
        found += rows
    return found


def _segments(words: Sequence[Word]) -> list[Line]:
    """Runs of words that were written one behind the other on one line."""
    found: list[Line] = []
    for text, x0, y0, x1, y1, _ in words:
        last = found[-1] if found else None
        if last is not None and not last.text.endswith((HYPHEN, "\x02")) and _same_row(last, y0, y1):
            gap, height = x0 - last.x1, max(last.height, y1 - y0)
            if -0.5 * height <= gap < GAP * height:
                last.text += (" " if gap > 0.08 * height else "") + text
                last.x1 = max(last.x1, x1)
                if y1 - y0 >= 0.9 * last.height:
                    last.y0, last.y1 = min(last.y0, y0), max(last.y1, y1)
                continue
        found.append(Line(text, x0, y0, x1, max(y1, y0 + 0.1), x1 - x0))
    return found


def _same_row(line: Line, y0: float, y1: float) -> bool:
    """Whether something from ``y0`` to ``y1`` stands on ``line``: at half of the smaller one's height."""
    return min(line.y1, y1) - max(line.y0, y0) >= 0.5 * min(line.height, max(y1 - y0, 0.1))


def _rows(segments: list[Line]) -> list[Line]:
    """Segments on one height joined from left to right; two spaces separate the cells of a table."""
    found = []
    for row in _clusters(segments):
        row.sort(key=lambda s: s.x0)
        whole = row[0]
        for cell in row[1:]:
            wide = cell.x0 - whole.x1 >= GAP * whole.height
            touching = cell.x0 - whole.x1 <= 0.08 * whole.height
            whole.text += ("  " if wide else "" if touching else " ") + cell.text
            whole.x1 = max(whole.x1, cell.x1)
            whole.y0, whole.y1 = min(whole.y0, cell.y0), max(whole.y1, cell.y1)
        found.append(whole)
    return found


def _clusters(segments: list[Line]) -> list[list[Line]]:
    """Segments that stand on one height, from top to bottom."""
    rows: list[list[Line]] = []
    for segment in sorted(segments, key=lambda s: (s.y0 + s.y1, s.x0)):
        if rows and _same_row(rows[-1][0], segment.y0, segment.y1):
            rows[-1].append(segment)
        else:
            rows.append([segment])
    return rows


def _regions(segments: list[Line], depth: int) -> list[list[Line]]:
    """Segments in groups to be read one after the other."""
    gutter = _gutter(segments) if depth and len(segments) >= 2 * PROSE_LINES else None
    if gutter is None:
        return [segments] if segments else []
    edge, far = min(s.x0 for s in segments), max(s.x1 for s in segments)
    bands: list[tuple[list[Line], list[Line]] | list[Line]] = []  # columns, or rows across them
    for row in _clusters(segments):
        left = [s for s in row if s.x1 <= gutter + 1]
        right = [s for s in row if s.x0 >= gutter - 1]
        full = any(s.x1 - s.x0 > 0.85 * min(gutter - edge, far - gutter) for s in row)  # a line beside a figure
        table = len(row) > 3 and not full and 2 * sum(len(s.text) >= PROSE_CHARACTERS for s in row) < len(row)
        across = table or len(left) + len(right) < len(row)
        last = bands[-1] if bands else None
        if across:
            if isinstance(last, list):
                last += row
            else:
                bands.append(row)
        elif isinstance(last, tuple):
            last[0].extend(left)
            last[1].extend(right)
        else:
            bands.append((left, right))
    found: list[list[Line]] = []
    joined = False  # whether the last of ``found`` is a run of rows that more rows may join
    for band in bands:
        if isinstance(band, tuple):
            left, right = band
            if not right or not left or _prose(left, 2) or _prose(right, 2):
                found += [*_regions(left, depth - 1), *_regions(right, depth - 1)]
                joined = False
                continue
            band = [*left, *right]
        if joined:
            found[-1] += band
        else:
            found.append(band)
        joined = True
    return found


def _gutter(segments: list[Line]) -> float | None:
    """Where a page of two columns can be cut: hardly a line crosses, and both sides are prose. ``None`` if nowhere."""
    x0, x1 = min(s.x0 for s in segments), max(s.x1 for s in segments)
    width = x1 - x0
    if width < 100:
        return None
    crossing = [0] * (int(width) + 2)  # segments over each point, as differences first
    for s in segments:
        crossing[max(0, int(s.x0 - x0))] += 1
        crossing[min(int(width) + 1, int(s.x1 - x0) + 1)] -= 1
    for i in range(1, len(crossing)):
        crossing[i] += crossing[i - 1]
    middle = range(int(0.2 * width), int(0.8 * width))
    fewest = min(crossing[i] for i in middle) + 1 + len(segments) // 25  # titles, and cells of a table above
    runs: list[list[int]] = []
    for i in middle:
        if crossing[i] <= fewest:
            if runs and runs[-1][1] == i - 1:
                runs[-1][1] = i
            else:
                runs.append([i, i])
    height = median(s.height for s in segments)
    best: tuple[int, float] | None = None
    for a, b in runs:
        if b - a + 1 < 0.6 * height:
            continue
        gutter = x0 + (a + b) / 2
        left = [s for s in segments if s.x1 <= gutter + 1]
        right = [s for s in segments if s.x0 >= gutter - 1]
        if _prose(left, PROSE_LINES) and _prose(right, PROSE_LINES):
            lesser = min(len(left), len(right))
            if best is None or lesser > best[0]:
                best = (lesser, gutter)
    return None if best is None else best[1]


def _prose(segments: list[Line], fewest: int) -> bool:
    """Whether half of the text stands in long lines: a figure's labels do not make a column a table."""
    whole = sum(len(s.text) for s in segments)
    return len(segments) >= fewest and 2 * sum(n for s in segments if (n := len(s.text)) >= PROSE_CHARACTERS) > whole
