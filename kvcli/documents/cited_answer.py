"""An answer as it arrives, with ``[n]`` after each quote that the document has.

A quote ends with the mark that closes it, or with a sentence, a line or the answer. It is looked up when the next word
is complete, from the text up to there. So neither quotes nor numbers depend on how an answer arrives, and what was
shown does not change. A quote that continues the one before keeps its number. Nothing is inserted into code.
"""

from __future__ import annotations

import re

from kvcli.documents import quotes
from kvcli.documents.normalize import UNSPACED
from kvcli.documents.quotes import Citation, QuoteIndex, folded_quote, trimmed, within
from kvcli.documents.sentences import split_sentences

_WIDE = rf"{UNSPACED}\uff00-\uffef"
_LONGEST = 40
"""Characters of a word after which it is shown in parts."""
_TOKEN = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]{{1,{_LONGEST}}}")
_ONE = re.compile(rf"[{_WIDE}]")
_CLOSING = re.compile("[”“»«›‹」』'\"’‘]")
_ENDING = re.compile(r"[.!?…。！？｡][^\w\s]*(?:\[\d{1,3}\])*\Z")
_PARAGRAPH = re.compile(r"\n\s*\n")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_QUOTED = re.compile(r"[ \t]*>")
_WORD = re.compile(r"\w")
_NUMBERED = re.compile(r"\d+(?:\.\d+)+\.?\s")


def cite_answer(index: QuoteIndex, answer: str, question: str = "") -> tuple[str, list[Citation]]:
    """Return an answer with ``[n]`` after each quote that the document has, and its quotes in order.

    No two quotes share a character of the answer, or are the same place of the document. Words of the ``question``
    that the answer repeats without quotation marks are no quote.
    """
    growing = CitedAnswer(index, question)
    text = growing.push(answer) + growing.end()
    return text, growing.citations


class CitedAnswer:
    """Takes an answer in pieces and gives it back with numbers.

    Args:
        index: of the document.
        question: words of it that the answer repeats are no quote.

    Attributes:
        citations: so far, in the order of the answer.
    """

    def __init__(self, index: QuoteIndex, question: str = "") -> None:
        self.citations = list[Citation]()
        self._index, self._asked = index, folded_quote(question)
        self._text = ""
        self._shown = 0  # characters of it that were given back
        self._start = self._ended = 0  # the last complete word
        self._line = self._unit = 0  # where its line and its sentence begin
        self._from = 0  # where the next quotation mark may open
        self._code = False
        self._numbers = dict[int, None]()  # found, and not given back yet

    def push(self, piece: str) -> str:
        """Add to the answer; returns what can be shown."""
        self._text += piece
        out = list[str]()
        for token in _TOKEN.finditer(self._text, self._ended):
            if token.end() < len(self._text) or len(token[0]) == _LONGEST or _ONE.match(token[0]):
                out.append(self._next(*token.span()))
        return "".join(out)

    def end(self) -> str:
        """End the answer; returns the rest of it."""
        token = _TOKEN.search(self._text, self._ended)
        out = "" if token is None else self._next(*token.span())
        self._settle(len(self._text), newline=True, unit=True, final=True)
        if not self._numbers:
            return out + self._text[self._shown :]
        return out + ("\n" + self._take().strip() if self._code or self._fenced else self._take().rstrip())

    @property
    def _fenced(self) -> bool:
        """Whether this line opens or closes code."""
        return _FENCE.match(self._text, self._line) is not None

    def _next(self, start: int, end: int) -> str:
        """Another word is complete, so what ended with the one before it is known."""
        text, before = self._text, self._ended
        gap, numbers = text[before:start], ""
        newline, paragraph = "\n" in gap, _PARAGRAPH.search(gap) is not None
        if before:
            unit = newline and (paragraph or not self._goes_on(start))
            ended = self._settle(end, newline=newline, unit=unit, final=False)
            fenced = self._fenced
            inside = self._code or fenced or (not newline and text.count("`", self._line, before) % 2)
            if ended and self._numbers and not inside:
                numbers = self._take()
            if newline:
                self._code, self._line = self._code ^ fenced, start
            if unit:
                self._unit = start
            if paragraph:
                self._from = max(self._from, start)
        shown = end + (text[end : end + 1] == " ")
        out = numbers + text[self._shown : shown]
        self._start, self._ended, self._shown = start, end, shown
        return out

    def _goes_on(self, start: int) -> bool:
        """Whether a sentence goes on at ``start`` after a line end."""
        text = self._text
        if self._code or self._fenced or _QUOTED.match(text, self._line):
            return False
        return text[start].islower() and _ENDING.search(text, self._start, self._ended) is None

    def _take(self) -> str:
        """The numbers that wait, apart from the words beside them."""
        numbers = "".join(f"[{n}]" for n in self._numbers)
        self._numbers.clear()
        following = self._text[self._shown : self._shown + 1]
        before = "" if self._shown > self._ended else " "
        return before + numbers + (" " if following and not following.isspace() else "")

    def _settle(self, seen: int, *, newline: bool, unit: bool, final: bool) -> bool:
        """Look up what ends with the last complete word; whether a quote or a sentence does.

        Args:
            seen: the end of the word after it.
            newline, unit, final: whether a line, a unit of text or the answer ends here.
        """
        text, end, ended = self._text, self._ended, False
        quoting = _QUOTED.match(text, self._line) is not None
        if newline or final or (not quoting and _CLOSING.search(text, self._start, end)):
            for a, b, closed in quotes.marked(text, self._from, end, line=newline, final=final):
                self._from, ended = closed, True
                found = self._index.marked(text, a, b, self._asked)
                if found is not None and self._fits(a, b):
                    self._add(found)
        if unit or final or (_ENDING.search(text, self._start, end) and self._sentence_ends(seen)):
            self._look_up(end, final=final)
            self._unit, ended = end, True
        return ended

    def _sentence_ends(self, seen: int) -> bool:
        sentences = split_sentences(self._text[self._unit : seen], items=False)
        return any(self._unit + sentence.end == self._ended for sentence in sentences)

    def _look_up(self, end: int, *, final: bool) -> None:
        """Look for the words before ``end`` without quotation marks: as many of them as the document has."""
        text, last = self._text, self.citations[-1] if self.citations else None
        starts = {0, self._line, self._unit} | ({last.answer_start} if last is not None and not last.marked else set())
        cut = final and _ENDING.search(text, self._start, end) is None
        for start in sorted(starts):
            a, b = trimmed(text, start, end)
            piece = text[a:b]
            least = quotes.LEAST if (final and not start) or " " not in piece else quotes.LEAST_PART
            if len(piece) < least or (" " not in piece and piece.isascii()) or not self._fits(a, b):
                continue
            if (self._asked and folded_quote(piece) in self._asked) or self._index.heading(piece):
                continue
            if _NUMBERED.match(piece) and not _ENDING.search(text, self._start, end):  # a heading
                continue
            if (found := self._index.exact(text, a, b, marked=False)) is not None:
                self._add(found, cut=cut)
                return

    def _fits(self, start: int, end: int) -> bool:
        """Whether a quote overlaps no other one, or holds all of the last one and more words."""
        over = [c for c in self.citations if c.answer_end > start]
        if not over:
            return True
        (last, *more) = over
        words = _WORD.search(self._text, start, last.answer_start) or _WORD.search(self._text, last.answer_end, end)
        return not more and start <= last.answer_start and words is not None

    def _add(self, found: Citation, *, cut: bool = False) -> None:
        """Number a quote: as the last one if it holds that, as an earlier one if it is a part of its place.

        If the answer was ``cut`` inside a sentence that continues the last quote, the number is before it already.
        """
        place = found.start is not None
        if self.citations and self.citations[-1].answer_end > found.answer_start:
            number = len(self.citations)
            place = place and not (cut and self.citations[-1].start is not None)
            self.citations[-1] = found
        else:
            same = (n for n, c in enumerate(self.citations, 1) if c.start is not None and within(found, c))
            number = next(same, 0) if place else 0
            if not number:
                self.citations.append(found)
                number = len(self.citations)
        if place:
            self._numbers[number] = None
