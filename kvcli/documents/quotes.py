"""What an answer quotes, looked up in the document: verified, repaired, or unverified and then no citation.

A quote is text between quotation marks of any usual style, or a Markdown block quote. Small models often answer in the
text's exact words without any marks. So the whole answer, or else a line or a sentence of it, is also a quote if the
text has it word for word. It is looked up exactly and in no other way, because nothing claims that it is a quote. What
is found proves that the document has these words, and not that they answer the question. A heading or a running head
without marks is no quote.

A single word in quotation marks is a quote only if the document has it in one place, and the question has not. Else
it is the name of something, and the first of its places says nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from kvcli.documents.document import Document, Span
from kvcli.documents.normalize import UNSPACED, NormalizedText, normalize
from kvcli.documents.pages import MARK

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
_BULLET = re.compile(r"[\s\-–—*•#>:,;.…]*(?:\d+[.)]\s+)?")
_STOPS = " \t\n,;:.!?…。、！？*"
_PAGE = re.compile(MARK)
_WORD = re.compile(r"\w")
_LETTER = re.compile(r"[^\W\d_]")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_NUMBERING = re.compile(r"^[\W\d_]+")
_TITLE = 8
"""Characters below which a heading may be a word of any sentence."""


@dataclass(frozen=True)
class Citation:
    """One quote of an answer.

    ``answer_start`` and ``answer_end`` are its characters in the answer, ``marked`` says whether it was in
    quotation marks there. ``quote`` are the source's own words, without kvcli's page marks. ``start``, ``end`` and
    ``span`` say where they are in the document's text, at the first of ``places`` places; ``line`` is counted as
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

    @cached_property
    def _titles(self) -> list[str]:
        """The headings of the document, folded, the longest first."""
        titles = {title for span in self.document.spans for title in (span.section or "").split(" › ")}
        folded = (_NUMBERING.sub("", folded_quote(title)).casefold() for title in titles)
        return sorted({title for title in folded if len(title) >= _TITLE}, key=len, reverse=True)

    def heading(self, text: str) -> bool:
        """Whether a text is a heading or a running head: little remains of it without the document's headings."""
        rest = folded_quote(text).casefold()
        whole = len(_LETTER.findall(rest))
        for title in self._titles:
            rest = rest.replace(title, " ")
        return 3 * len(_LETTER.findall(rest)) < whole

    def marked(self, answer: str, start: int, end: int, asked: str = "") -> Citation | None:
        """Look up text in quotation marks; ``asked`` is the folded question."""
        if not _WORD.search(answer, start, end):
            return None
        found = (
            self.exact(answer, start, end)
            or self._alike(answer, start, end)
            or Citation(answer[start:end], "unverified", start, end)
        )
        text = answer[start:end].strip()
        word = len(text) < LEAST_PART and len(text.split()) == 1 and not _UNSPACED.search(text)
        named = found.places > 1 or (found.places and re.search(rf"\b{re.escape(folded_quote(text))}\b", asked))
        return None if word and named else found

    def exact(self, answer: str, start: int, end: int, *, marked: bool = True) -> Citation | None:
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


def within(one: Citation, other: Citation) -> bool:
    """Whether a place in the document is a part of another one."""
    return (other.start or 0) <= (one.start or 0) and (one.end or 0) <= (other.end or 0)


def folded_quote(text: str) -> str:
    """A quote to look for: kvcli's own page marks, which models copy, are no words of the source."""
    return normalize(text, (m.span() for m in _PAGE.finditer(text))).text.strip()


def marked(
    answer: str, start: int = 0, end: int | None = None, *, line: bool = True, final: bool = True
) -> list[tuple[int, int, int]]:
    """The stretches of an answer that are marked as quotes: cut at omissions (…), without them and without marks.

    The third number is the end of what closes it. ``line`` says whether a line ends at ``end``, and so a block quote;
    ``final`` whether the answer does, and so a quote that nothing closes.
    """
    found: list[tuple[int, int, int]] = []
    for match in _MARKED.finditer(answer, start, len(answer) if end is None else end):
        assert match.lastgroup is not None
        body = match.span(match.lastgroup)
        open_ = (match.lastgroup == "m" and not line) or (
            match.end() == body[1] and match.lastgroup == "a" and not final
        )
        if not open_ and _PARAGRAPH.search(answer, *body) is None:
            found += ((a, b, match.end()) for a, b in _without_gaps(answer, *body))
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


def trimmed(answer: str, start: int, end: int) -> tuple[int, int]:
    """A stretch without bullets, white space and punctuation at its ends."""
    text = answer[start:end].rstrip(_STOPS)
    head = _BULLET.match(text)
    return start + (head.end() if head else 0), start + len(text)
