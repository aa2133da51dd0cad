"""From words with places to lines in reading order.

A content stream may draw its words in any order, so only places count. A page is read row by row, unless
:mod:`kvcli.documents.pdf.columns` finds columns of prose. A page of a right-to-left script is laid out as in a
mirror.
"""

from collections import Counter
from collections.abc import Sequence

from kvcli.documents.pdf.columns import regions
from kvcli.documents.pdf.direction import mostly_right_to_left, reading_order, strong
from kvcli.documents.pdf.initials import join_initials
from kvcli.documents.pdf.rows import Line, clusters, same_row
from kvcli.documents.pdf.scripts import join_scripts
from kvcli.documents.pdf.words import HYPHEN, Word

GAP = 1.45
"""A gap between words that is wider than this, in line heights, separates cells or columns."""

BLANK = 0.07
"""A gap that is wider than this, in line heights, separates words."""

SIDEWAYS = -1000.0
"""The height given to lines that are not upright."""

CELLS = "  "
"""What separates the cells of a row."""


def lines(words: Sequence[Word], known: Counter[str] | None = None) -> list[Line]:
    """The lines of a page in the order a person reads them; what is sideways in a margin comes last.

    ``known`` counts the words of the whole document, in small letters.
    """
    known = known or Counter()
    turns = Counter(w.turns for w in words).most_common(1)
    usual = turns[0][0] if turns else 0
    found = _upright(join_initials([_turned(w, usual) for w in words if w.turns == usual], known))
    for turn in sorted({w.turns for w in words} - {usual}):
        aside = _upright([_turned(w, turn) for w in words if w.turns == turn])
        after = 1 + max((other.column for other in found), default=0)
        for line in aside:
            line.column += after
            line.y0 = line.y1 = SIDEWAYS  # nowhere among the others' heights
        found += aside
    return found


def _turned(word: Word, turns: int) -> Word:
    """The place of a word on a page that is turned so that it is upright."""
    text, x0, y0, x1, y1, _, spaced = word
    if turns == 1:
        return Word(text, -y1, x0, -y0, x1, 0, spaced)
    if turns == 2:
        return Word(text, -x1, -y1, -x0, -y0, 0, spaced)
    return Word(text, y0, -x1, y1, -x0, 0, spaced) if turns == 3 else word


def _upright(words: Sequence[Word]) -> list[Line]:
    mirrored = mostly_right_to_left([w.text for w in words])
    if mirrored:
        words = [w._replace(x0=-w.x1, x1=-w.x0) for w in words]
    found: list[Line] = []
    for column, region in enumerate(regions(_segments(words))):
        rows = [_row(row) for row in clusters(region)]
        edges = sorted(r.x1 for r in rows)
        right = edges[min(len(edges) - 1, int(0.95 * len(edges)))]
        for row in rows:
            row.column, row.right = column, right
            row.text = _text(row.pieces, right_to_left=mirrored)
        found += rows
    return found


def _segments(words: Sequence[Word]) -> list[Line]:
    """Runs of words that were written one after the other on one line."""
    found: list[Line] = []
    for word in words:
        last = found[-1] if found else None
        if last is not None and not last.tail.text.endswith((HYPHEN, "\x02")) and same_row(last, word.y0, word.y1):
            height = max(last.height, word.y1 - word.y0)
            if -0.5 * height <= word.x0 - last.x1 < GAP * height:
                _append(last, word)
                continue
        first = word.y1 - word.y0 if "\u2e80" <= word.text[:1] <= "\uffdc" else word.x1 - word.x0
        bottom = max(word.y1, word.y0 + 0.1)
        found.append(Line([("", word.text)], word.x0, word.y0, word.x1, bottom, first, word, word, len(word.text)))
    return found


def _append(line: Line, word: Word) -> None:
    before, text = join_scripts(line.tail, word)
    if before is not None and len(line.pieces) == 1:
        line.pieces[0] = ("", before)
    apart = word.spaced or word.x0 - line.x1 > BLANK * _common(line.tail.y1 - line.tail.y0, word.y1 - word.y0)
    line.pieces.append((" " if apart else "", text))
    line.characters += len(text) + apart
    line.x1 = max(line.x1, word.x1)
    line.tail = word
    if word.y1 - word.y0 >= 0.9 * line.height:
        line.y0, line.y1 = min(line.y0, word.y0), max(line.y1, word.y1)


def _common(height: float, other: float) -> float:
    """The height by which the gap between two words is judged: not that of an initial of many lines."""
    return min(max(height, other), 1.5 * min(height, other))


def _row(segments: list[Line]) -> Line:
    """One line of the segments of a row."""
    whole = segments[0]
    for cell in segments[1:]:
        separator = CELLS if cell.x0 - whole.x1 >= GAP * whole.height else " "
        text = cell.pieces[0][1]
        if separator != CELLS and text == cell.head.text:
            before, text = join_scripts(whole.tail, cell.head)
            if before is not None and len(whole.pieces) == 1:
                whole.pieces[0] = ("", before)
        if cell.x0 - whole.x1 <= BLANK * _common(whole.height, cell.height):
            separator = ""
        whole.pieces += [(separator, text), *cell.pieces[1:]]
        whole.x1, whole.tail = max(whole.x1, cell.x1), cell.tail
        whole.y0, whole.y1 = min(whole.y0, cell.y0), max(whole.y1, cell.y1)
    return whole


def _text(pieces: Sequence[tuple[str, str]], *, right_to_left: bool) -> str:
    """The words of a line in the order of reading; within each cell, where scripts of both directions meet."""
    other = "L" if right_to_left else "R"
    if not any(strong(text) == other for _, text in pieces if not (text.isascii() and not right_to_left)):
        return "".join(separator + text for separator, text in pieces)
    found: list[str] = []
    start = 0
    for end in range(1, len(pieces) + 1):
        if end == len(pieces) or pieces[end][0] == CELLS:
            cell = pieces[start:end]
            order = reading_order([t for _, t in cell], right_to_left=right_to_left)
            found += [(cell[k][0] if k else pieces[start][0]) + cell[i][1] for k, i in enumerate(order)]
            start = end
    return "".join(found)
