"""From the lines of pages to text: paragraphs are joined, hyphens at line ends are undone."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

from kvcli.documents.pdf.rows import Line
from kvcli.documents.pdf.words import HYPHEN

LONGEST = 100
"""Letters of a word that are compared at a hyphen."""

_LEADERS = re.compile(r"(?:\s?[.·…_]){5,}\s?")
_BULLET = re.compile(r"(?:[•◦▪●■–—*‣·−-]|\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})[.)])(?:\s|$)")
_BROKEN = re.compile(rf"[^\W\d_][{HYPHEN}\x02\xad\u2010-]$")
_WORD_END, _WORD_START = re.compile(r"[^\W\d_]+$"), re.compile(r"[^\W\d_]+")
_UNSPACED = re.compile("[\u2e80-\u3129\u31a0-\u9fff\uf900-\ufaff\uff00-\uff60]")  # Chinese and Japanese
_LETTERS = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})


class Hyphens:
    """Whether a hyphen at a line's end belongs to the word, told by how the document writes the word elsewhere."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.known: Counter[str] = Counter()
        broken = False
        for line in lines:
            found = [w.lower() for w in _LETTERS.findall(line)]
            halves = slice(1 if broken else 0, -1 if (broken := bool(_BROKEN.search(line))) else None)
            for word in found[halves]:  # half a word is no word
                parts = word.split("-")
                pairs = map("-".join, pairwise(parts))
                self.known.update({word, *parts, *pairs})

    def join(self, left: str, right: str) -> str:
        """``left``, which ends with a hyphen, and ``right`` as one text."""
        return self.stem(left, right) + right

    def stem(self, left: str, right: str) -> str:
        """Return ``left`` without its last hyphen if ``right`` continues the word, else with a plain hyphen."""
        stem, soft = left[:-1], left[-1] == "\xad"
        head, tail = _WORD_END.search(stem[-LONGEST:]), _WORD_START.match(right[:LONGEST])
        if head is None or tail is None:
            return stem + ("" if soft else "-")
        a, b = head[0].lower(), tail[0].lower()
        if soft or self.known[a + b]:
            return stem
        compound = (
            self.known[f"{a}-{b}"]
            or not right[0].islower()
            or (len(a) > 3 and len(b) > 3 and self.known[a] and self.known[b])
        )
        return f"{stem}-" if compound else stem


def clean(text: str) -> str:
    """One line as it goes into the text: ligatures spelled out, dot leaders shortened, no control characters."""
    text = (
        _LEADERS.sub(" … ", text.translate(LIGATURES)) if ".." in text or ". ." in text else text.translate(LIGATURES)
    )
    return re.sub(r"[\x00-\x01\x03-\x08\x0b-\x1f\x7f]", "", text)


def flow(lines: Sequence[Line], hyphens: Hyphens) -> str:
    """The text of a page: a line is joined to the one before it if that one had no room for its first word."""
    if not lines:
        return ""
    steps: dict[int, list[float]] = defaultdict(list)
    for a, b in pairwise(lines):
        if a.column == b.column and b.y0 > a.y1 - 2:
            steps[a.column].append(b.y0 - a.y0)
    pitches = {column: median(found) for column, found in steps.items()}
    found, opened = [clean(lines[0].text)], True
    for a, b in pairwise(lines):
        last, new = found[-1], clean(b.text)
        pitch = min(pitches.get(b.column, b.height), 1.6 * max(a.height, b.height))
        if _wrapped(a, b, pitch, opened=opened):
            if _BROKEN.search(last[-2:]):
                found[-1] = hyphens.stem(last, new)
            elif not (_UNSPACED.match(last[-1:]) and _UNSPACED.match(new)):
                found.append(" ")
            opened = False
        else:
            apart = a.column != b.column or b.y0 - a.y0 > 1.3 * max(pitch, a.height) or a.text[-1:] in ".:?!"
            found.append("\n\n" if apart else "\n")
            opened = True
        found.append(new)
    return "".join(found)


def _wrapped(a: Line, b: Line, pitch: float, *, opened: bool) -> bool:
    """Whether ``b`` continues the paragraph of ``a``; ``opened`` says that ``a`` is its first line."""
    if a.text.endswith((HYPHEN, "\x02")) and b.text[:1].islower() and abs(a.height - b.height) < 0.25 * a.height:
        return True
    if a.column != b.column:  # a sentence that runs on in the next column
        return a.text[-1:] not in ".:?!" and b.text[:1].islower() and a.x1 > a.right - b.first - 0.5 * a.height
    height = max(a.height, b.height)
    if b.y0 - a.y0 > max(1.35 * pitch, 1.35 * height) or abs(a.height - b.height) > 0.25 * height:
        return False
    if _BULLET.match(b.text) or _LEADERS.search(a.text) or "  " in a.text or "  " in b.text:
        return False
    if a.x1 + 0.25 * height + b.first <= a.right - 1:  # its first word had room there: somebody ended the line
        return False
    indent = b.x0 - a.x0
    if indent > 0.8 * height:
        return opened and bool(_BULLET.match(a.text))
    return indent > -0.8 * height or opened


def finish(text: str) -> str:
    """Replace hyphenation signs by hyphens; remove blanks at line ends and repeated empty lines."""
    text = re.sub(rf"[{HYPHEN}\x02]", "-", text).replace("\xad", "")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def across(before: str, after: str, hyphens: Hyphens) -> tuple[str, str]:
    """Two pages, of which the first may end in the middle of a word; the word's rest moves to the first page."""
    if not _BROKEN.search(before[-2:]):
        return before, after
    word = re.match(r"[^\W\d_]\S*", after)
    if word is None or not word[0][0].islower():
        return before, after
    return hyphens.join(before, word[0]), after[word.end() :].lstrip(" ")
