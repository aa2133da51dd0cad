"""Running heads and feet: lines that repeat on page after page, with no more that changes than the page's number.

An amount, a date or the number of an invoice changes from page to page too. Such a line is text, wherever it is.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvcli.documents.pdf.rows import Line

EDGE = 4
"""Lines at the top and at the bottom of a page that may be running heads."""

MARGIN = 0.12
"""Share of a page's height, at the top and at the bottom, in which running heads stand."""

REPEATS = 3
"""Pages a line must be on, at the same height, to be a running head."""

MANY = 9
"""Pages from which a number that runs with the pages, but ahead of them, may be a page number beside other words."""

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|\d+|(?<![A-Za-z])[ivxlcdm]+(?![A-Za-z])", re.IGNORECASE)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
_WORD = r"(?:pages?|pg|p|seite|s|página|pagina|pag|pág|strona|str|side|sida|sivu|стр|страница|第)\.?"
_BEFORE = re.compile(rf"(?:^|\s{{2}}|\s[|·•–—/-]|(?:^|[\s\W]){_WORD})[\s\W]?$", re.IGNORECASE)
_AFTER = re.compile(
    r"[\s\W]?(?:$|\s{2}|\s?[|·•–—/-](?:\s|$)|\s?/\s?\d|\s(?:of|von|de|di|van|av|af|из)\s)", re.IGNORECASE
)
_ALONE = re.compile(rf"[\W_]*(?:{_WORD})?[\W_]*", re.IGNORECASE)
_LABEL = re.compile(r"(?:[:#№]|\b(?:no|nr|number|nummer|total|amount))\W*$", re.IGNORECASE)
_MONEY = re.compile(r"[$€£¥₹₽]|\b(?:EUR|USD|GBP|CHF|JPY|NOK|SEK|DKK|CAD|AUD|INR)\b")


@dataclass
class _Head:
    """A line that may be a head: its page and place there, and its text with and without numbers."""

    page: int
    index: int
    y0: float
    text: str
    pattern: str
    side: int
    kind: str = ""


def running_heads(
    pages: Sequence[Sequence[Line]], heights: Sequence[float], labels: Sequence[str | None], read: int
) -> list[dict[int, str]]:
    """For each page the indices of its running heads, feet and page numbers, and what kind of text each is.

    Two lines are of one kind if they differ only in the page's number. Only an unbroken run of such lines from the
    top or the bottom counts. A line at the height of other heads counts too if it has the page's number in it.
    ``read`` is the number of pages that were read; the others have no lines.
    """
    edges = [_edges(lines, height) for lines, height in zip(pages, heights, strict=True)]
    groups: dict[tuple[str, int], list[_Head]] = defaultdict(list)
    heads: dict[tuple[int, int, int], _Head] = {}
    for page, (lines, ends) in enumerate(zip(pages, edges, strict=True)):
        for side, end in enumerate(ends):
            for i in end:
                pattern = _TOKEN.sub("#", lines[i].text)
                head = _Head(page, i, lines[i].y0, lines[i].text, pattern, side)
                heads[page, side, i] = head
                groups[pattern, side].append(head)
    for group in groups.values():
        _name_kinds(group, labels)
    usual = {id(head): head for group in groups.values() for head in _repeated(group, heights)}
    found: list[dict[int, str]] = []
    slots: list[Counter[int]] = [Counter(), Counter()]  # heights at which heads and feet stand, in steps of 4 points
    for page, ends in enumerate(edges):
        drop: dict[int, str] = {}
        for side, end in enumerate(ends):
            for i in end:
                head = heads[page, side, i]
                if id(head) not in usual:
                    break
                drop[i] = head.kind
                slots[side][round(head.y0 / 4)] += 1
        found.append(drop)
    for page, ends in enumerate(edges):
        for side, end in enumerate(ends):  # a head that names a short section is on one page or two
            if not end or end[0] in found[page] or len(pages[page][end[0]].text) > 120:
                continue
            head = heads[page, side, end[0]]
            often = sum(slots[side][round(head.y0 / 4) + d] for d in (-1, 0, 1)) >= max(REPEATS, read / 4)
            if often and "#" in head.kind.replace(head.text, "") and not _MONEY.search(head.text):
                found[page][end[0]] = head.kind
    return found


def _edges(lines: Sequence[Line], height: float) -> tuple[list[int], list[int]]:
    order = sorted(range(len(lines)), key=lambda i: lines[i].y0)
    top = [i for i in order[:EDGE] if lines[i].y0 < MARGIN * height]
    return top, [i for i in order[::-1][:EDGE] if lines[i].y1 > (1 - MARGIN) * height]


def _numbers(text: str) -> Iterator[tuple[re.Match[str], int, bool]]:
    """Whole numbers in a line, their values, and whether they are Roman."""
    for match in _TOKEN.finditer(text):
        token = match[0].lower()
        if token.isdecimal():
            yield match, int(token[:9]), False
        elif token[0] in _ROMAN:
            values = [_ROMAN[c] for c in token]
            yield match, sum(-v if v < w else v for v, w in zip(values, [*values[1:], 0], strict=True)), True


def _name_kinds(group: Sequence[_Head], labels: Sequence[str | None]) -> None:
    """Give each line its kind: its text with ``#`` for a number that is the page's."""
    ahead: Counter[tuple[int, bool, int]] = Counter()  # how far numbers are ahead of the pages
    for head in group:
        for place, (_, value, roman) in enumerate(_numbers(head.text)):
            ahead[place, roman, value - head.page - 1] += 1
    for head in group:
        parts, at = [], 0
        for place, (match, value, roman) in enumerate(_numbers(head.text)):
            before, after = head.text[: match.start()], head.text[match.end() :]
            alone = bool(_ALONE.fullmatch(before) and _ALONE.fullmatch(after))
            offset = value - head.page - 1
            named = match[0] == labels[head.page] or not offset
            steady = ahead[place, roman, offset]
            runs = steady >= (REPEATS if offset < 0 or alone else MANY)
            apart = _BEFORE.search(before) and _AFTER.match(after) and not _LABEL.search(before)
            if (named or runs) and (alone or apart):
                parts += [head.text[at : match.start()], "#"]
                at = match.end()
        head.kind = "".join(parts) + head.text[at:]


def _repeated(group: Sequence[_Head], heights: Sequence[float]) -> Iterator[_Head]:
    """Lines of one pattern that repeat at one height, if not so many of their numbers differ that they are values."""
    if len(group) < REPEATS or (_MONEY.search(group[0].pattern) and any(c.isdigit() for h in group for c in h.kind)):
        return
    if len({head.kind for head in group}) > max(1, len(group) // REPEATS):
        return
    by_height: Counter[int] = Counter(round(head.y0) for head in group)
    for head in group:
        near = int(0.012 * heights[head.page])
        if sum(by_height[round(head.y0) + d] for d in range(-near, near + 1)) >= REPEATS:
            yield head
