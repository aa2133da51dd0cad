"""Haystacks: a document split into sentences, or noise, between which facts are inserted."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from kvcli.documents.sentences import split_sentences
from kvcli.errors import InputError, UsageError
from kvcli.evaluate.token_counter import TokenCounter

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
"""The paragraph that pass-key benchmarks repeat (Mohtashami & Jaggi, arXiv:2305.16300)."""


def split(text: str) -> list[str]:
    """Split ``text`` at ends of sentences; the pieces join to ``text``."""
    starts = [sentence.start for sentence in split_sentences(text)[1:]]
    return [text[a:b] for a, b in pairwise([0, *starts, len(text)]) if b > a]


class Haystack:
    """Pieces of text with their token counts, between which facts are inserted.

    Args:
        counter: counts tokens.
        text: a document; without one, endless :data:`NOISE`.
        name: of the document, for errors.
    """

    def __init__(self, counter: TokenCounter, text: str | None = None, name: str = "the document") -> None:
        self._counter, self._name = counter, name
        self._pieces = [NOISE] if text is None else split(text)
        self._endless = text is None
        self._ends = [0, *accumulate(counter.pieces(self._pieces))]
        self.tokens = None if text is None else counter.document(text)
        """Tokens read for the whole document; ``None`` for noise."""

    def hide(self, facts: Sequence[str], depths: Sequence[float], length: int, rng: random.Random) -> str:
        """Return a part of the document of at most ``length`` tokens with facts between its sentences.

        Args:
            facts: sentences to insert.
            depths: relative positions in [0, 1], one per fact.
            length: tokens of the whole, prompt and facts included; the result is at most a sentence shorter.
            rng: selects the part.

        Raises:
            InputError: the document is shorter than ``length``.
            UsageError: the facts alone are longer.
        """
        if self.tokens is not None and self.tokens < length:
            raise InputError(
                f"{self._name} has {self.tokens:,} tokens, fewer than the {length:,} to be read",
                f"--lengths {self.tokens}, or more files",
            )
        room = length - self._counter.overhead - sum(self._counter.pieces([f"{fact} " for fact in facts]))
        pieces = self._window(room, rng)
        while (over := self._counter.document(text := _plant(pieces, facts, depths)) - length) > 0:
            if not pieces:
                raise UsageError(
                    f"{length:,} tokens are too few for the facts of the task", f"--lengths {length + over}"
                )
            counts = self._counter.pieces(pieces)
            while pieces and over > 0:
                over -= counts[len(pieces) - 1]
                pieces.pop()
        return text

    def _window(self, tokens: int, rng: random.Random) -> list[str]:
        if self._endless:
            return self._pieces * max(0, tokens // self._ends[-1])
        last = max(0, bisect_right(self._ends, self._ends[-1] - tokens) - 1)
        first = rng.randint(0, last)
        return self._pieces[first : max(first, bisect_right(self._ends, self._ends[first] + tokens) - 1)]


def _plant(pieces: Sequence[str], facts: Sequence[str], depths: Sequence[float]) -> str:
    """Insert each fact before the piece at its depth, with the white space found there."""
    parts = list(pieces)
    for i in sorted(range(len(facts)), key=lambda i: depths[i], reverse=True):
        at = round(depths[i] * len(pieces))
        before = pieces[at - 1] if at else " "
        gap = before[len(before.rstrip()) :]
        parts.insert(at, facts[i] + gap if gap else f" {facts[i]} ")
    return "".join(parts)
