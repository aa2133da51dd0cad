"""The end of greedy answers that repeat themselves, and what of their text is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

_END = re.compile(r"""[.!?…]["'”’»)\]*]*(?=\s)|[。！？]|\n""")
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_WORD = re.compile(r"\w+")
_MARKER = re.compile(r"(?<!\S)\d{1,4}[.)](?=\s|$)")
_NUMBER = re.compile(r"[\W\d_]*")
"""Before the words of a sentence: white space, bullets and numbers, in which repeated items of a list differ."""


class RepetitionGuard:
    """Watches a greedy answer: it ends it at a sentence that it has had before, or in a loop of tokens.

    A greedy answer that repeats a long sentence rarely comes back from it. Sentences are compared by their words
    without case. Those of code blocks may be repeated, and those of fewer than :attr:`SENTENCE` characters. Right after
    the same one, a sentence of :attr:`AGAIN` characters ends the answer too. A loop is a stretch of at least
    :attr:`LOOP` tokens, and of three times the same tokens, with a period of at most :attr:`PERIOD` tokens. At the end
    of a truncated answer, a loop of :attr:`TAIL` tokens and twice the same tokens is cut. The beginning of a sentence
    that was there before is cut there too. Text that may be a repetition is held back until it is none, so that nothing
    is printed which is then cut. An answer without repetition is unchanged.

    Args:
        prompt: sentences of the prompt; an answer that goes on with one of them repeats the prompt.

    Attributes:
        text: the answer so far, and after its end without what was repeated.
        repeats: whether it has ended.
    """

    SENTENCE, AGAIN, LOOP, TAIL, PERIOD, MARKERS, MARKERS_LEFT = 30, 12, 64, 16, 256, 20, 5
    _SUSPECT = 3
    """Tokens equal to earlier ones after which a loop is suspected."""

    def __init__(self, prompt: Sequence[str] = ()) -> None:
        self.text, self.repeats = "", False
        self._shown = 0  # characters that were returned
        self._ids: list[int] = []
        self._starts: list[int] = []  # where the text of each token begins
        self._runs: dict[int, int] = {}
        self._prompt = {self._words(sentence) for sentence in prompt}
        self._seen = set(self._prompt)
        self._sentence = 0  # where the unfinished sentence begins
        self._last = ""  # the words of the one before it
        self._wordless = 0  # after the last character that is no part of a list item's number

    def push(self, token: int, piece: str) -> str:
        """Add a token and its text; returns the text that can be printed now."""
        self._starts.append(len(self.text))
        self._add(piece)
        before = self._ids[: -self.PERIOD - 1 : -1]
        self._runs = {period: self._runs.get(period, 0) + 1 for period, id in enumerate(before, 1) if id == token}
        self._ids.append(token)
        if any(run >= max(self.LOOP, 2 * period) for period, run in self._runs.items()):
            return self._cut(self._loop())
        if self._repeated_sentence():
            return self._cut(self._sentence)
        if (counted := self._counted(self.MARKERS)) < len(self.text):
            return self._cut(counted)
        return self._show(min(self._held_sentence(), self._loop(), self._counted(2)))

    def close(self, rest: str = "", *, truncated: bool = False) -> str:
        """End the answer, whose last text is ``rest``; returns what is left to be printed."""
        self._add(rest)
        at = len(self.text)
        if truncated and not self.repeats:
            if len(self._words(self.text[self._sentence :])) >= self.SENTENCE:
                at = self._held_sentence()
            if any(run >= max(self.TAIL, period) for period, run in self._runs.items()):
                at = min(at, self._loop())
            at = min(at, self._counted(self.MARKERS_LEFT))
        if at == len(self.text) and not self.repeats and self.text[self._sentence :].strip():
            self.text += "\n"
            at = self._sentence if self._repeated_sentence() else at
            self.text = self.text[:-1]
        return self._cut(at) if at < len(self.text) else self._show(at)

    def _add(self, piece: str) -> None:
        for at, c in enumerate(piece, len(self.text) + 1):
            self._wordless = self._wordless if c.isdigit() or c.isspace() or c in ".)" else at
        self.text += piece

    def _show(self, end: int) -> str:
        out = self.text[self._shown : max(self._shown, end)]
        self._shown += len(out)
        return out

    def _cut(self, at: int) -> str:
        self.repeats = True
        self.text = self.text[: max(self._shown, len(self.text[:at].rstrip()))]
        return self._show(len(self.text))

    def _loop(self) -> int:
        """Where the longest stretch that equals earlier tokens begins; the end of the text if it is short."""
        run = max(self._runs.values(), default=0)
        return self._starts[-run] if run >= self._SUSPECT else len(self.text)

    def _counted(self, least: int) -> int:
        """The end of the first of so many item numbers without words at the text's end; else the text's end."""
        found = list(_MARKER.finditer(self.text, self._wordless))
        return found[0].end() if len(found) >= least and not self._in_code() else len(self.text)

    def _repeated_sentence(self) -> bool:
        """Go over the sentences that are complete; whether one was there before, at which it stops."""
        at = self._sentence
        while (end := _END.search(self.text, at)) is not None:
            at = end.end()
            words = self._words(self.text[self._sentence : at])
            if not words and end[0] != "\n":  # the number of an item
                continue
            again = len(words) >= self.AGAIN and words == self._last and end[0] != "\n"
            self._last = words
            if not self._in_code():
                begun = words not in self._prompt or bool(self.text[: self._sentence].strip())
                if (words in self._seen and begun) or again:
                    return True
                if len(words) >= self.SENTENCE:
                    self._seen.add(words)
            self._sentence = at
        return False

    def _held_sentence(self) -> int:
        """Where the unfinished sentence begins if it may become one that was there; else the end of the text."""
        part = self.text[self._sentence :]
        if part.strip() and not self._in_code():
            words = self._words(part)
            if any(sentence.startswith(words) for sentence in (self._last, *self._seen)):
                return self._sentence
        return len(self.text)

    def _words(self, text: str) -> str:
        return " ".join(_WORD.findall(_NUMBER.sub("", text, count=1))).casefold()

    def _in_code(self) -> bool:
        return len(_FENCE.findall(self.text, 0, self._sentence)) % 2 == 1
