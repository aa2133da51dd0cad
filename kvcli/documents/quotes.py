"""What an answer quotes, looked up in the document: verified, repaired, or unverified and then no citation.

A quote is text between quotation marks of any usual style, or a Markdown block quote. Small models often answer in the
text's exact words without any marks. So the whole answer, or else a line or a sentence of it, is also a quote if the
text has it word for word. It is looked up exactly and in no other way, because nothing claims that it is a quote. What
is found proves that the document has these words, and not that they answer the question.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from kvcli.documents.document import Document, Span
from kvcli.documents.normalize import NormalizedText, normalize
from kvcli.documents.sentences import split_sentences

Status = Literal["verified", "repaired", "unverified"]

LEAST = 12
"""Characters below which nothing is repaired, and nothing without quotation marks is a quote: too much is alike."""

LEAST_PART = 30
"""Of a line or sentence without marks that is not the whole answer. Scripts without blanks need only ``LEAST``."""

ALIKE = 90
"""Of 100, by rapidfuzz's ratio: from here on a quote is the source's words miswritten."""

_STYLES = (
    r"“(?P<a>[^“]+?)(?:”|\Z)",
    r"„(?P<b>[^„]+?)[“”]",
    r"«(?P<c>[^«]+?)»",
    r"»(?P<d>[^»]+?)«",
    r"‹(?P<e>[^‹]+?)›",
    r"「(?P<f>[^「]+?)」",
    r"『(?P<g>[^『]+?)』",
    r"``(?P<h>[^`]+?)''",
    r'(?<!\w)"(?P<i>[^"]+?)"(?!\w)',
    r"‚(?P<j>[^‚]+?)[‘’](?!\w)",
    r"‘(?P<k>[^‘]+?)’(?!\w)",
    r"(?<![\w'])'(?=\S)(?P<l>[^\n]+?)(?<=\S)'(?![\w'])",
    r"^[ \t]*>[ \t]*(?P<m>\S[^\n]*)$",
)
_MARKED = re.compile("|".join(_STYLES), re.MULTILINE)
_PARAGRAPH = re.compile(r"\n\s*\n")
_GAP = re.compile(r"\s*[\[(]?(?:\.\s?\.\s?\.|…)\.?[\])]?\s*")
_LINE = re.compile(r"[^\n]+")
_BULLET = re.compile(r"[\s\-–—*•#>:,;.…]*(?:\d+[.)]\s+)?")
_STOPS = " \t\n,;:.!?…。、！？*"
_PAGE = re.compile(r"\[page [^\]\n]{1,12}\]")
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Citation:
    """One quote of an answer.

    ``answer_start`` and ``answer_end`` are its characters in the answer, ``marked`` says whether it stood in
    quotation marks there. ``quote`` are the source's own words, kvcli's page marks left out, and ``start``, ``end``
    and ``span`` say where in the document's text these are, at the first of ``places`` places; ``line`` is counted as
    :attr:`Span.line` is. Of an unverified quote ``quote`` is the answer's text, ``places`` is 0 and the rest ``None``.
    ``score`` is the likeness in per cent: 100 if it is verified.
    """

    quote: str
    status: Status
    answer_start: int
    answer_end: int
    marked: bool = True
    start: int | None = None
    end: int | None = None
    span: Span | None = None
    line: int | None = None
    places: int = 0
    score: float = 0.0

    def to_json(self, n: int) -> dict[str, Any]:
        """As the ``n``-th citation of an answer in JSON."""
        nowhere = {"source": None, "page": None, "label": None, "section": None}
        return {
            "n": n,
            **(nowhere if self.span is None else self.span.place),
            "line": self.line,
            "char_start": self.start,
            "char_end": self.end,
            "quote": self.quote,
            "status": self.status,
            "score": round(self.score, 1),
            "places": self.places,
            "marked": self.marked,
            "answer_start": self.answer_start,
            "answer_end": self.answer_end,
        }


class QuoteIndex:
    """Looks quotes up in one document, which is folded once, at the first question."""

    def __init__(self, document: Document) -> None:
        self.document = document

    @cached_property
    def folded(self) -> NormalizedText:
        """The document's text without kvcli's marks, to compare by."""
        return normalize(self.document.text, ((s.start, s.body) for s in self.document.spans if s.body > s.start))

    def cite(self, answer: str, question: str = "") -> list[Citation]:
        """The quotes of an answer in its order; no two share a character of it, or are the same place of the document.

        Words of the ``question`` that the answer repeats without quotation marks are no quote.
        """
        asked = folded_quote(question)
        found = [c for start, end in marked(answer) if (c := self._marked(answer, start, end))]
        taken = [(c.answer_start, c.answer_end) for c in found]
        for start, end in unmarked(answer):
            echo = bool(asked) and folded_quote(answer[start:end]) in asked
            free = not echo and all(end <= a or b <= start for a, b in taken)
            if free and (c := self._exact(answer, start, end, marked=False)):
                found.append(c)
                taken.append((start, end))
        once = list[Citation]()
        for c in sorted(found, key=lambda c: c.answer_start):
            if c.start is None or not any(e.start is not None and _within(c, e) for e in once):
                once.append(c)
        return once

    def _marked(self, answer: str, start: int, end: int) -> Citation | None:
        if not _WORD.search(answer, start, end):
            return None
        return (
            self._exact(answer, start, end)
            or self._alike(answer, start, end)
            or Citation(answer[start:end], "unverified", start, end)
        )

    def _exact(self, answer: str, start: int, end: int, *, marked: bool = True) -> Citation | None:
        """Verified: as it stands, or without the punctuation that a sentence of the answer's own put at its ends."""
        for a, b in dict.fromkeys([(start, end), trimmed(answer, start, end)]):
            places = list(self._places(folded_quote(answer[a:b]))) if a < b else []
            if places:
                return self._found("verified", (start, end), marked, places[0], len(places), 100.0)
        return None

    def _places(self, needle: str) -> Iterator[tuple[int, int]]:
        """Where the folded text has a folded quote, as whole words."""
        folded, at = self.folded, -1
        while needle and (at := folded.text.find(needle, at + 1)) >= 0:
            if not (folded.splits_word(at) or folded.splits_word(at + len(needle))):
                yield at, at + len(needle)

    def _alike(self, answer: str, start: int, end: int) -> Citation | None:
        """Repaired: the whole words of the source that the quote is most alike, if it is alike enough."""
        from rapidfuzz import fuzz

        folded, (a, b) = self.folded, trimmed(answer, start, end)
        needle = folded_quote(answer[a:b])
        if len(needle) < LEAST or len(needle) > len(folded.text):
            return None
        near = fuzz.partial_ratio_alignment(needle, folded.text, score_cutoff=ALIKE)
        if near is None:
            return None
        cuts = [
            (self._cut(near.dest_start, left), self._cut(near.dest_end, right)) for left in (-1, 1) for right in (-1, 1)
        ]
        score, (a, b) = max((fuzz.ratio(needle, folded.text[a:b]), (a, b)) for a, b in cuts if a < b)
        return self._found("repaired", (start, end), True, (a, b), 1, score) if score >= ALIKE else None

    def _cut(self, at: int, step: int) -> int:
        """The nearest edge of a word from ``at`` on, to the left (-1) or to the right (1), without white space."""
        while self.folded.splits_word(at):
            at += step
        return at

    def _found(
        self, status: Status, place: tuple[int, int], marked: bool, at: tuple[int, int], places: int, score: float
    ) -> Citation:
        start, end = self.folded.origin(*at)
        span, line = self.document.at(start), self.document.line(start)
        return Citation(self._words(start, end), status, *place, marked, start, end, span, line, places, score)

    def _words(self, start: int, end: int) -> str:
        """The source's own words between two places."""
        parts: list[str] = []
        for span in self.document.spans:
            if span.start < end and span.end > start:
                if parts and span.body > span.start and not parts[-1].endswith("\n"):
                    parts.append("\n")
                parts.append(self.document.text[max(start, span.body) : min(end, span.end)])
        return "".join(parts).strip()


def _within(one: Citation, other: Citation) -> bool:
    """Whether a place in the document is a part of another one."""
    return (other.start or 0) <= (one.start or 0) and (one.end or 0) <= (other.end or 0)


def folded_quote(text: str) -> str:
    """A quote to look for: kvcli's own page marks, which models copy, are no words of the source."""
    return normalize(text, (m.span() for m in _PAGE.finditer(text))).text.strip()


def marked(answer: str) -> list[tuple[int, int]]:
    """The stretches of an answer that are marked as quotes: cut at omissions (…), without them and without marks."""
    found: list[tuple[int, int]] = []
    for match in _MARKED.finditer(answer):
        assert match.lastgroup is not None
        start, end = match.span(match.lastgroup)
        if _PARAGRAPH.search(answer, start, end) is None:
            found += _without_gaps(answer, start, end)
    return found


def _without_gaps(answer: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    at = start
    for gap in _GAP.finditer(answer, start, end):
        yield from _nonempty(answer, at, gap.start())
        at = gap.end()
    yield from _nonempty(answer, at, end)


def _nonempty(answer: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    body = answer[start:end]
    start, end = start + len(body) - len(body.lstrip()), end - len(body) + len(body.rstrip())
    if start < end:
        yield start, end


def unmarked(answer: str) -> list[tuple[int, int]]:
    """What may be a quote without marks: the whole answer, then its lines and sentences, if long enough."""
    lines = (match.span() for match in _LINE.finditer(answer))
    sentences = ((s.start, s.end) for s in split_sentences(answer, items=False))
    pieces = [(0, len(answer)), *lines, *sentences]
    return list(_long_enough(answer, dict.fromkeys(trimmed(answer, a, b) for a, b in pieces)))


def _long_enough(answer: str, pieces: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    whole = trimmed(answer, 0, len(answer))
    for start, end in pieces:
        text = answer[start:end]
        least = LEAST if (start, end) == whole or " " not in text else LEAST_PART
        if end - start >= least and (" " in text or not text.isascii()):
            yield start, end


def trimmed(answer: str, start: int, end: int) -> tuple[int, int]:
    """A stretch without bullets, white space and punctuation at its ends."""
    text = answer[start:end].rstrip(_STOPS)
    head = _BULLET.match(text)
    return start + (head.end() if head else 0), start + len(text)
