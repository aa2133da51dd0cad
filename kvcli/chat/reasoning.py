"""Separation of reasoning, ``<think> … </think>``, from the answer in a stream."""

from __future__ import annotations

from collections.abc import Iterator

OPEN, CLOSE = "<think>", "</think>"

ReasoningPiece = tuple[str, bool]
"""A text, and whether it is reasoning."""


class ReasoningSplitter:
    """Separates reasoning from the answer; drops the tags and the white space around them.

    Args:
        thinking: whether the template has already opened the first tag.
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self.thinking = thinking
        self._held = ""
        self._begin = True  # at the start of the answer, where reasoning may begin, or after a tag

    def push(self, text: str) -> list[ReasoningPiece]:
        """Add text; return the pieces that are now certain."""
        self._held += text
        return list(self._pieces(last=False))

    def flush(self) -> list[ReasoningPiece]:
        """Return the withheld pieces."""
        return list(self._pieces(last=True))

    def _pieces(self, *, last: bool) -> Iterator[ReasoningPiece]:
        if not self.thinking and self._begin:
            body = self._held.lstrip()
            if body.startswith(OPEN):
                self.thinking, self._held = True, body[len(OPEN) :]
            elif not last and OPEN.startswith(body):
                return
        while self._held:
            at = self._held.find(CLOSE) if self.thinking else -1
            if at >= 0:
                yield from self._say(self._held[:at].rstrip(), True)
                self._held, self.thinking, self._begin = self._held[at + len(CLOSE) :], False, True
                continue
            sure = len(self._held) if last or not self.thinking else self._sure()
            said, self._held = self._held[:sure], self._held[sure:]
            yield from self._say(said, self.thinking)
            return

    def _sure(self) -> int:
        """Return the length of the pending text that cannot begin a closing tag or the white space before it."""
        keep = max((n for n in range(len(CLOSE)) if self._held.endswith(CLOSE[:n])), default=0)
        return len(self._held[: len(self._held) - keep].rstrip())

    def _say(self, text: str, reasoning: bool) -> Iterator[ReasoningPiece]:
        if self._begin:
            text = text.lstrip("\n")
        if text:
            self._begin = False
            yield text, reasoning


def strip_reasoning(text: str, *, thinking: bool = False) -> str:
    """Return an answer without its reasoning."""
    splitter = ReasoningSplitter(thinking=thinking)
    return "".join(piece for piece, reasoning in [*splitter.push(text), *splitter.flush()] if not reasoning)
