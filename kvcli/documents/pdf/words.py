"""From PDFium's characters to words with places, in the process that reads a PDF.

PDFium counts characters in UTF-16 units, and each of them has a place. A word is split where its letters change size
or leave the line, so that the layout can tell 10^6 from 106.
"""

import ctypes
import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kvcli.documents.pdf.direction import RIGHT_TO_LEFT, logical
from kvcli.documents.pdf.fonts import PageFonts

HYPHEN = "\ufffe"
"""PDFium's sign for a hyphen at the end of a line."""

ASCENT, DESCENT = 0.87, 0.23
"""How far the box of a word reaches above and below its line of writing, in sizes of its letters."""

_WORD = re.compile(rf"[^\s{HYPHEN}\x02]+[{HYPHEN}\x02]?|[{HYPHEN}\x02]")
_DIGIT = re.compile(r"\d")
_LINE_END = re.compile(r"[\r\n]+")


class Word(NamedTuple):
    """Letters and their place: edges in points from the page's upper left corner, quarter turns counter-clockwise.

    ``spaced`` says that the text has a blank in front of the word, whatever its place says.
    """

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    turns: int = 0
    spaced: bool = False


class Letters(NamedTuple):
    """The words of a page, and how many of its characters belong to fonts without a map to Unicode.

    ``guessed`` of them read like a text when the font's own numbers are taken for ASCII. The others are ``unknown``.
    """

    words: list[Word]
    unknown: int = 0
    guessed: int = 0


class _Box(NamedTuple):
    """A character: edges of its advance, in points of the page's own space, and its line of writing."""

    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    base: float
    turns: int


def words(boxes: "Boxes", text: Any, count: int, fonts: PageFonts, hidden: Sequence[int] = ()) -> Letters:
    """The words among the first ``count`` characters of a page, in the order of its content stream, upright.

    Characters at the places ``hidden`` are left out.
    """
    characters = _characters(text, count)
    if hidden:
        letters = list(characters)
        for i in hidden:
            letters[i] = " "
        characters = "".join(letters)
    characters, unknown, guessed = fonts.told(text, characters)
    found: list[Word] = []
    if RIGHT_TO_LEFT.search(characters):
        for start, end in _lines(characters):
            if RIGHT_TO_LEFT.search(characters, start, end):
                found += _visual(characters, start, end, boxes)
            else:
                found += _plain(characters, start, end, boxes)
    else:
        found += _plain(characters, 0, count, boxes)
    return Letters(found, unknown, guessed)


def _characters(text: Any, count: int) -> str:
    """The characters of a page by PDFium's index: one character of Python for each UTF-16 unit."""
    from pypdfium2 import raw

    whole: str = text.get_text_range(0, count)
    if len(whole) == count and max(whole, default="") <= "\uffff":
        return whole
    get, handle = raw.FPDFText_GetUnicode, text.raw
    return "".join(chr(min(get(handle, i), 0x10FFFF)) for i in range(count))


class Boxes:
    """Places of a page's characters."""

    def __init__(self, page: Any, text: Any) -> None:
        from pypdfium2 import raw

        self.raw, self.handle = raw, text.raw
        self.left, self.bottom, self.right, self.top = page.get_bbox()
        self.rotation = page.get_rotation()
        self.rectangle, self.matrix = raw.FS_RECTF(), raw.FS_MATRIX()
        self.to_rectangle = ctypes.byref(self.rectangle)
        self.x, self.y = ctypes.c_double(), ctypes.c_double()
        self.lines: dict[tuple[float, float], _Box] = {}

    def __getitem__(self, i: int) -> _Box | None:
        raw, handle, box = self.raw, self.handle, self.rectangle
        if not raw.FPDFText_GetLooseCharBox(handle, i, self.to_rectangle):
            return None
        x0, y0, x1, y1 = box.left, box.bottom, box.right, box.top
        if line := self.lines.get((y0, y1)):  # on the line of another one, and of its font and size
            return _Box(x0, line[1], x1, line[3], line[4], line[5], 0)
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            return None
        found = self._measured(i, x0, y0, x1, y1)
        if not found.turns:
            self.lines[y0, y1] = found
        return found

    def generated(self, i: int) -> bool:
        """Whether PDFium has put in a character, by its own idea of gaps."""
        return bool(self.raw.FPDFText_IsGenerated(self.handle, i) == 1)

    def _measured(self, i: int, x0: float, y0: float, x1: float, y1: float) -> _Box:
        """A box by the size of its letters and their line: fonts say very different heights of their own."""
        raw, handle, m = self.raw, self.handle, self.matrix
        raw.FPDFText_GetMatrix(handle, i, ctypes.byref(m))
        raw.FPDFText_GetCharOrigin(handle, i, ctypes.byref(self.x), ctypes.byref(self.y))
        turn = math.atan2(m.c, m.d) / (math.pi / 2)
        turns = round(turn) % 4
        tall = (x1 - x0) if turns % 2 else (y1 - y0)
        size = raw.FPDFText_GetFontSize(handle, i) * math.hypot(m.c, m.d)
        if not 0.4 * tall < size < 2.5 * tall or abs(turn - round(turn)) > 0.05:  # a font of pictures, or text aslant
            return _Box(x0, y0, x1, y1, tall, (y0, x0, y1, x1)[turns], turns)
        up, down = ASCENT * size, DESCENT * size
        x, y = self.x.value, self.y.value
        if turns == 0:
            return _Box(x0, y - down, x1, y + up, size, y, turns)
        if turns == 1:
            return _Box(x - down, y0, x + up, y1, size, x, turns)
        if turns == 2:
            return _Box(x0, y - up, x1, y + down, size, y, turns)
        return _Box(x - up, y0, x + down, y1, size, x, turns)

    def shown(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """Edges in the page's own space as left, top, right, bottom of the page as it is shown."""
        left, bottom, right, top = self.left, self.bottom, self.right, self.top
        if self.rotation == 0:
            return x0 - left, top - y1, x1 - left, top - y0
        if self.rotation == 90:
            return y0 - bottom, x0 - left, y1 - bottom, x1 - left
        if self.rotation == 180:
            return right - x1, y0 - bottom, right - x0, y1 - bottom
        return top - y1, right - x1, top - y0, right - x0

    def word(self, text: str, boxes: Sequence[_Box], *, spaced: bool = False) -> Word:
        """A word that covers ``boxes``, upright as the page is shown."""
        first, last = boxes[0], boxes[-1]
        if len(boxes) <= 2:
            x0, y0 = min(first.x0, last.x0), min(first.y0, last.y0)
            x1, y1 = max(first.x1, last.x1), max(first.y1, last.y1)
        else:
            x0, y0 = min(b.x0 for b in boxes), min(b.y0 for b in boxes)
            x1, y1 = max(b.x1 for b in boxes), max(b.y1 for b in boxes)
        a, b, c, d = self.shown(x0, y0, x1, y1)
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        turns = (first.turns - self.rotation // 90) % 4
        return Word(text, round(a, 1), round(b, 1), round(c, 1), round(d, 1), turns, spaced)


def _plain(characters: str, start: int, end: int, boxes: Boxes) -> Iterator[Word]:
    """Words of text that runs from left to right."""
    for match in _WORD.finditer(characters, start, end):
        a, b = match.span()
        spaced = a > 0 and characters[a - 1] == " " and not boxes.generated(a - 1)
        first, last = boxes[a], boxes[b - 1]
        if first is None or last is None:
            found = [box for i in range(a, b) if (box := boxes[i])]
            if found:
                yield boxes.word(match[0], found, spaced=spaced)
        elif _level(first, last) and not (b - a > 2 and _DIGIT.search(match[0])):
            yield boxes.word(match[0], (first, last), spaced=spaced)
        else:
            yield from _pieces(match[0], [boxes[i] or first for i in range(a, b)], boxes, spaced=spaced)


def _level(a: _Box, b: _Box) -> bool:
    """Whether two characters have the same size and the same line of writing."""
    return a.turns == b.turns and abs(a.size - b.size) <= 0.1 * a.size and abs(a.base - b.base) <= 0.1 * a.size


def _pieces(text: str, places: Sequence[_Box], boxes: Boxes, *, spaced: bool) -> Iterator[Word]:
    """One word in pieces of one size and line each. No piece begins before its neighbour ends, nor apart from it."""
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or not _level(places[start], places[i]):
            piece = list(places[start:i])
            if start and places[start].turns == 0 and piece[0].x0 - places[start - 1].x1 < piece[0].size:
                piece[0] = piece[0]._replace(x0=places[start - 1].x1)
            yield boxes.word(text[start:i], piece, spaced=spaced and not start)
            start = i


def _lines(characters: str) -> Iterator[tuple[int, int]]:
    """The lines as PDFium finds them."""
    start = 0
    for match in _LINE_END.finditer(characters):
        yield start, match.start()
        start = match.end()
    yield start, len(characters)


def _visual(characters: str, start: int, end: int, boxes: Boxes) -> Iterator[Word]:
    """Words of a line with right-to-left letters. Only the places of its characters count, not PDFium's order."""
    letters: list[tuple[float, str, _Box]] = []
    marks: list[tuple[float, str]] = []
    blanks: list[float] = []
    for i in range(start, end):
        c, box = characters[i], boxes[i]
        if box is None or box.turns:
            if box is not None:
                yield from _plain(characters, start, end, boxes)
                return
            continue
        middle = (box.x0 + box.x1) / 2
        if c == " ":
            blanks += [middle] if box.x1 > box.x0 else []
        elif unicodedata.combining(c):
            marks.append((middle, c))
        elif "\udc00" <= c <= "\udfff" and letters:
            letters[-1] = (letters[-1][0], letters[-1][1] + c, letters[-1][2])
        elif not c.isspace():
            letters.append((middle, c, box))
    if not letters:
        return
    letters.sort(key=lambda found: found[0])
    blanks.sort()
    on: dict[int, str] = {}
    for middle, c in marks:  # a mark belongs to the letter above or below which it is
        at = bisect_right(letters, middle, key=lambda found: found[0])
        near = min((k for k in (at - 1, at) if 0 <= k < len(letters)), key=lambda k: abs(letters[k][0] - middle))
        on[near] = on.get(near, "") + c
    word: list[tuple[str, _Box]] = []
    for k, (middle, c, box) in enumerate(letters):
        if word:
            before, last = letters[k - 1][0], word[-1][1]
            blank = bisect_right(blanks, middle) > bisect_right(blanks, before)
            if blank or box.x0 - last.x1 > 0.15 * box.size or not _level(last, box):
                yield boxes.word(logical([t for t, _ in word]), [b for _, b in word])
                word = []
        word.append((c + on.get(k, ""), box))
    if word:
        yield boxes.word(logical([t for t, _ in word]), [b for _, b in word])
