"""Which parts of a page are columns, to be read one after the other, and which are rows across them.

Columns hold running text: their lines are full, and go on in the next one. Labels with values and the cells of a
table are set in columns too, but each line of theirs ends where somebody ended it. They are read row by row.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from kvcli.documents.pdf.rows import Line, clusters

PROSE_CHARACTERS = 18
"""Length from which a line is prose; the cells of a table are shorter."""

PROSE_LINES = 5
"""Fewest lines of prose that make a column."""

FLOWING = 0.3
"""Share of a column's text on lines that the next one continues, from which it is running text."""

ALIGNED = 0.7
"""Share of lines with another beside them on the same height, from which two columns may be a table."""

DEPTH = 3
"""Columns within columns: four columns are three cuts."""

CUTS = 50
"""Places looked at for a cut."""


def regions(segments: Sequence[Line], depth: int = DEPTH) -> list[list[Line]]:
    """Segments in groups to be read one after the other, each row by row."""
    gutter = _gutter(segments) if depth and len(segments) >= 2 * PROSE_LINES else None
    if gutter is None:
        return [list(segments)] if segments else []
    edge, far = min(s.x0 for s in segments), max(s.x1 for s in segments)
    bands: list[tuple[list[Line], list[Line]] | list[Line]] = []  # columns, or rows across them
    for row in clusters(segments):
        left = [s for s in row if s.x1 <= gutter + 1]
        right = [s for s in row if s.x0 >= gutter - 1]
        full = any(s.x1 - s.x0 > 0.85 * min(gutter - edge, far - gutter) for s in row)  # a line beside a figure
        cells = 2 * sum(s.characters >= PROSE_CHARACTERS for s in row) < len(row)
        table = left and right and len(row) > 3 and cells and not full
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
                found += [*regions(left, depth - 1), *regions(right, depth - 1)]
                joined = False
                continue
            band = [*left, *right]
        if joined:
            found[-1] += band
        else:
            found.append(band)
        joined = True
    return found


def _gutter(segments: Sequence[Line]) -> float | None:
    """Where a page of two columns can be cut: hardly a line crosses, and both sides are prose. ``None`` if nowhere."""
    x0, x1 = min(s.x0 for s in segments), max(s.x1 for s in segments)
    width = x1 - x0
    if not 100 <= width < 100_000:
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
    wide = [(a, b) for a, b in runs if b - a + 1 >= 0.6 * height]
    best: tuple[int, float] | None = None
    for a, b in sorted(wide, key=lambda r: r[0] - r[1])[:CUTS]:
        gutter = x0 + (a + b) / 2
        left = [s for s in segments if s.x1 <= gutter + 1]
        right = [s for s in segments if s.x0 >= gutter - 1]
        lesser = min(len(left), len(right))
        if (best is None or lesser > best[0]) and _prose(left, PROSE_LINES) and _prose(right, PROSE_LINES):
            if _aligned(left, right) and not (_flowing(left) and _flowing(right)):
                continue
            best = (lesser, gutter)
    return None if best is None else best[1]


def _prose(segments: Sequence[Line], fewest: int) -> bool:
    """Whether half of the text is on long lines: a figure's labels do not make a column a table."""
    whole = sum(s.characters for s in segments)
    long = sum(s.characters for s in segments if s.characters >= PROSE_CHARACTERS)
    return len(segments) >= fewest and 2 * long > whole


def _aligned(left: Sequence[Line], right: Sequence[Line]) -> bool:
    """Whether most lines of the lesser side have one beside them, on the same line of writing."""
    one, other = sorted((left, right), key=len)
    heights = {round(s.y1) for s in other}
    return sum(bool({round(s.y1) - 1, round(s.y1), round(s.y1) + 1} & heights) for s in one) >= ALIGNED * len(one)


def _flowing(column: Sequence[Line]) -> bool:
    """Whether enough of the text goes on from line to line.

    A line goes on in the next one if the next one's first word had no room on it. The next one must also not look like
    a beginning: with a capital, after a line without the end of a sentence.
    """
    rows = [(row[0], row[-1]) for row in clusters(column)]
    right = max(end.x1 for _, end in rows)
    whole = flowing = 0
    for (a, end), (b, _) in pairwise(rows):
        whole += a.characters
        close = b.y0 - a.y0 < 2 * max(a.height, b.height)
        begins = b.pieces[0][1][:1]
        if close and end.x1 + 0.25 * a.height + b.first > right - 1:
            flowing += a.characters if not begins.isupper() or end.pieces[-1][1][-1:] in ".,:;?!-\ufffe" else 0
    return flowing > FLOWING * whole
