"""Running text, lists and tables as blocks, and blocks as parts of a document: what HTML, EPUB and DOCX share."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvcli.documents.document import Part
from kvcli.documents.pages import mark

PAGE = "\x02"
"""Around a page label in running text. No white space, or it would be stripped."""

RAISED, LOWERED, LEVEL = "\x03", "\x04", "\x05"
"""Before a superscript, before a subscript, and after either."""

REPEATED = 80
"""Characters of a cell that spans rows, up to which it is repeated in each of them."""

COLUMNS = 64
"""Columns up to which a table keeps empty cells apart."""

_MARKS = {ord(c): None for c in (PAGE, RAISED, LOWERED, LEVEL, "\0")}
_SHIFTED = re.compile(f"([{RAISED}{LOWERED}])([^{RAISED}{LOWERED}{LEVEL}]*){LEVEL}")
_SIMPLE = re.compile(r"[-+−]?[\w.,]+")
_ORDINAL = frozenset(re.findall(r"\S+", "st nd rd th e er re ère ème o a os as"))
_ROMAN = [
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"),
    (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
]  # fmt: skip


@dataclass
class TextBlock:
    """A line or lines of text; a heading has its ``level``, 1 to 6."""

    text: str
    level: int = 0
    apart: bool = False


@dataclass
class _Table:
    """Cells of rows above that reach into the next ones, by column: text and rows left."""

    down: dict[int, tuple[str, int]] = field(default_factory=dict)
    room: int = 2_000  # characters that may be repeated; grows with the table's own


@dataclass
class Writer:
    """Makes blocks: pieces of text are added, and a block ends at :meth:`flush`.

    ``left`` counts what a reader of the page sees and this text has not, by name in the singular.
    """

    blocks: list[TextBlock] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    level: int = 0
    pre: int = 0
    pieces: list[str] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)
    rows: list[list[tuple[list[str], int, int]]] = field(default_factory=list)  # cells: pieces, columns, rows
    around: list[list[str]] = field(default_factory=list)  # pieces in front of the cells that are open
    mark: str = ""  # of a list item, until its first words
    apart: bool = False

    def add(self, text: str) -> None:
        """Append text as it is. Control characters that have a meaning here are to be taken out before."""
        if self.mark and not text.isspace():
            self.pieces.append(self.mark)
            self.mark = ""
        self.pieces.append(text)

    def flush(self, *, apart: bool = False) -> None:
        """End the block. In a cell only a blank divides its paragraphs."""
        if self.around:
            self.pieces.append(" ")
            return
        if not self.pieces:
            self.apart |= apart
            return
        text = shifted("".join(self.pieces).replace("\xad", ""))
        self.pieces.clear()
        if self.pre:
            text = text.strip("\n")
        else:
            text = "\n".join(line.strip() for line in re.sub(r"[ \t]+", " ", text).split("\n")).strip()
        self._end(text, apart=apart)

    def _end(self, text: str, *, apart: bool) -> None:
        if text.strip("| \n"):
            self.blocks.append(TextBlock(text, self.level, self.apart))
            self.apart = False
        self.apart |= apart

    def start_table(self) -> None:
        """Begin a table. A table in a cell stays in the line of that cell."""
        self.flush(apart=True)
        self.tables.append(_Table())

    def end_table(self) -> None:
        """End the table."""
        self.tables.pop()
        self.flush(apart=True)

    def start_row(self, *, skip: int = 0) -> None:
        """Begin a row, ``skip`` columns from its left edge."""
        self.flush()
        self.rows.append([([], min(skip, COLUMNS), 1)] if skip else [])

    def end_row(self) -> None:
        """End the row: a line of cells, with those of rows above that span it."""
        row = self.rows.pop()
        if self.around:
            for i, (pieces, _, _) in enumerate(row):
                self.pieces += [" | ", *pieces] if i else pieces
            return
        table = self.tables[-1] if self.tables else _Table()
        line: list[str] = []
        wide = 0  # columns of the last cell beyond its first
        for pieces, columns, down in row:
            line += [""] * wide
            _reach(table, line)
            text = shifted("".join(pieces).replace("\xad", ""))
            text = re.sub(r"\s+", " ", text).strip()
            table.room += len(text)
            if down > 1 and len(line) < COLUMNS:
                for column in range(len(line), min(len(line) + columns, COLUMNS)):
                    table.down[column] = (text if column == len(line) else "", down - 1)
            line.append(text)
            wide = min(columns, COLUMNS) - 1
        if table.down.get(len(line) + wide) is not None:
            line += [""] * wide
        _reach(table, line)
        self._end(re.sub(r"  +", " ", " | ".join(line)).strip(" "), apart=False)

    def start_cell(self, *, columns: int = 1, rows: int = 1) -> None:
        """Begin a cell."""
        self.around.append(self.pieces)
        self.pieces = []
        if self.rows:
            self.rows[-1].append((self.pieces, max(1, columns), rows))

    def end_cell(self) -> None:
        """End the cell."""
        own, self.pieces, self.mark = self.pieces, self.around.pop(), ""
        if not self.rows:  # a cell without a row
            self.pieces += own


def _reach(table: _Table, line: list[str]) -> None:
    """Cells of rows above, as far as they fill the next columns of ``line``."""
    while (found := table.down.get(len(line))) is not None:
        text, rows = found
        if rows > 1:
            table.down[len(line)] = (text, rows - 1)
        else:
            del table.down[len(line)]
        if len(text) > min(REPEATED, table.room):
            text = ""
        table.room -= len(text)
        line.append(text)


def clean(text: str) -> str:
    """Text without the control characters that mark pages and shifted letters here."""
    return text.translate(_MARKS)


def shifted(text: str) -> str:
    """Superscripts and subscripts written out, so that none runs on into a number: ``10^6``, ``x_i``, ``H2O``."""
    if LEVEL not in text:
        return text
    return re.sub(f"[{RAISED}{LOWERED}{LEVEL}]", "", _SHIFTED.sub(_shift, text))


def _shift(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1] if match.start() else " "
    after = match.string[match.end() : match.end() + 1]
    raised, body = match[1] == RAISED, match[2].strip()
    if not body:
        return match[2]
    if not (before.isalnum() or before in ")]}’'"):
        return match[2] + " " if body[-1].isdigit() and after.isdigit() else match[2]
    if body[0] in "[(*†‡§™®©ªº°":
        return match[2]
    if raised and body.isalpha() and (len(body) > 1 or (before.isdigit() and body in _ORDINAL)):
        return match[2]
    if not raised and body.isdigit() and not before.isdigit() and not after.isdigit():
        return match[2]
    runs_on = bool(after) and ((body[-1].isdigit() and after.isdigit()) or (body[-1].isalpha() and after.isalpha()))
    shown = body if _SIMPLE.fullmatch(body) and not runs_on else f"({body})"
    return ("^" if raised else "_") + shown


def numeral(n: int, kind: str) -> str:
    """A number as lists print it; ``kind`` is ``a``, ``A``, ``i``, ``I`` or ``1``."""
    if kind in ("a", "A") and n > 0:
        letters = ""
        while n > 0 and len(letters) < 8:
            n, rest = divmod(n - 1, 26)
            letters = chr(ord(kind) + rest) + letters
        return letters
    if kind in ("i", "I") and 0 < n < 4000:
        roman = ""
        for value, sign in _ROMAN:
            roman += sign * (n // value)
            n %= value
        return roman.upper() if kind == "I" else roman
    return str(n)


def comment(author: str, words: str) -> str:
    """A comment on a text, marked as one: it is not the author's own words."""
    by, words = " ".join(clean(author).split())[:60], " ".join(clean(words).split())
    return f"[comment{' by ' * bool(by)}{by}: {words}]" if words else ""


def left_out(left: Counter[str], name: str) -> list[str]:
    """One line about what was not read."""
    kinds = ", ".join(f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in left.items() if n)
    return [f"{name}: not read: {kinds}"] if kinds else []


def parts(found: list[TextBlock], numbers: Sequence[int] = ()) -> list[Part]:
    """Blocks as text, cut at headings and at page marks; each part knows its section, page and line.

    Args:
        found: in order.
        numbers: of the pages, in their order; by default 1, 2, 3 …
    """
    made: list[Part] = []
    path: list[tuple[int, str]] = []
    page: int | None = None
    label: str | None = None
    line, count = 1, 0
    current = Part("", page=page)
    texts: list[str] = []

    def add(text: str) -> None:
        nonlocal line
        texts.append(text)
        line += text.count("\n")

    def cut(above: str = "") -> None:
        nonlocal current
        current.text = "".join(texts)
        texts.clear()
        if current.text:
            made.append(current)
        section = " › ".join(t for _, t in path) or None
        current = Part("", len(above), page, label, section, line)
        if above:
            add(above)

    for i, block in enumerate(found):
        if block.level:
            title = re.sub(rf"{PAGE}[^{PAGE}]*{PAGE}|\s+", " ", block.text).strip()[:200]
            path = [*(p for p in path if p[0] < block.level), (block.level, title)]
            if i:
                add("\n" if texts and texts[-1].endswith("\n") else "\n\n")
            cut()
        elif i:
            add("\n\n" if block.apart else "\n")
        pieces = block.text.split(PAGE)
        for j, piece in enumerate(pieces):
            if j % 2:
                count += 1
                page, label = numbers[count - 1] if numbers else count, piece
                cut(mark(page, label) + (" " if pieces[j + 1].strip() else ""))
            elif piece:
                heading = "#" * block.level + " " if block.level and not j else ""
                add(heading + (piece.lstrip() if j else piece))
    add("\n")
    cut()
    return made


def slide_parts(blocks: list[TextBlock], chosen: list[int]) -> list[Part]:
    """Blocks as parts whose pages are the slides ``chosen``, of which each begins with a page mark."""
    found = [part for part in parts(blocks, chosen) if part.page is not None]
    for part in found:
        part.label = None
        if part.body:  # the beginning of a slide, before its own title
            part.section = None
    return found
