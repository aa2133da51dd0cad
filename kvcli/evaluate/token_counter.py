"""Counting tokens, and making a text as long as it may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvcli.errors import UsageError


class PromptLike(Protocol):
    """What measuring needs of a :class:`kvcli.engine.prompt.Prompt`."""

    @property
    def tokenizer(self) -> Any: ...

    def document(self, text: str) -> list[int]: ...


class TokenCounter:
    """Counts the tokens of texts as one model reads them."""

    def __init__(self, prompt: PromptLike) -> None:
        self._prompt = prompt
        self.overhead = self.document("")
        """Tokens of the prompt's own words in front of a text."""

    def document(self, text: str) -> int:
        """Tokens that are read for a text, the prompt's words included."""
        return len(self._prompt.document(text))

    def pieces(self, pieces: Sequence[str]) -> list[int]:
        """Tokens of each piece by itself; joined they take as many or fewer."""
        distinct = list(dict.fromkeys(pieces))
        if not distinct:
            return []
        ids = self._prompt.tokenizer(distinct, add_special_tokens=False, split_special_tokens=True, verbose=False)
        counts = dict(zip(distinct, map(len, ids["input_ids"]), strict=True))
        return [counts[piece] for piece in pieces]


def fit(build: Callable[[int], str], ruler: TokenCounter, length: int, *, least: int, what: str) -> int:
    """How many items fit: ``build(n)`` has at most ``length`` tokens and ``build(n + 1)`` hardly does.

    Args:
        build: the text with ``n`` items; more items make it longer.
        ruler: counts.
        length: tokens allowed.
        least: the fewest items that make sense.
        what: their name, for the error.

    Raises:
        UsageError: fewer than ``least`` fit.
    """
    fewest = ruler.document(build(least))
    if fewest > length:
        raise UsageError(f"{length:,} tokens are too few for {least:,} {what}", f"--lengths {-(-fewest // 256) * 256}")
    n = 2 * least + 16
    for _ in range(5):  # the secant rule from a fixed end; two or three rounds do
        each = (ruler.document(build(n)) - fewest) / (n - least)
        guess = least + int((length - fewest) / max(each, 0.01))
        if guess in (n, least):
            n = guess
            break
        n = guess
    while n > least and (over := ruler.document(build(n)) - length) > 0:
        n = max(least, n - 1 - int(over / max(each, 0.01)))
    return n
