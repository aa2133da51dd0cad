"""Token counts, and texts of a given token count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvcli.errors import UsageError


class PromptLike(Protocol):
    """The part of :class:`kvcli.engine.prompt.Prompt` that counting needs."""

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
        """Count the tokens of a text, the prompt's words included."""
        return len(self._prompt.document(text))

    def pieces(self, pieces: Sequence[str]) -> list[int]:
        """Count the tokens of each piece alone; the joined text has at most their sum."""
        distinct = list(dict.fromkeys(pieces))
        if not distinct:
            return []
        ids = self._prompt.tokenizer(distinct, add_special_tokens=False, split_special_tokens=True, verbose=False)
        counts = dict(zip(distinct, map(len, ids["input_ids"]), strict=True))
        return [counts[piece] for piece in pieces]


def fit(build: Callable[[int], str], counter: TokenCounter, length: int, *, least: int, what: str) -> int:
    """Find how many items fit: ``build(n)`` has at most ``length`` tokens, and ``build(n + 1)`` rarely does.

    Args:
        build: builds the text with ``n`` items; more items make it longer.
        counter: counts tokens.
        length: maximum tokens.
        least: minimum number of items.
        what: their name, for the error.

    Raises:
        UsageError: fewer than ``least`` fit.
    """
    fewest = counter.document(build(least))
    if fewest > length:
        raise UsageError(f"{length:,} tokens are too few for {least:,} {what}", f"--lengths {-(-fewest // 256) * 256}")
    n = 2 * least + 16
    for _ in range(5):  # secant method with one fixed end; two or three rounds suffice
        each = (counter.document(build(n)) - fewest) / (n - least)
        guess = least + int((length - fewest) / max(each, 0.01))
        if guess in (n, least):
            n = guess
            break
        n = guess
    while n > least and (over := counter.document(build(n)) - length) > 0:
        n = max(least, n - 1 - int(over / max(each, 0.01)))
    return n
