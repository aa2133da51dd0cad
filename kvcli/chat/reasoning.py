"""What a reasoning model thinks before it answers: ``<think> … </think>``, told from the answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator

OPEN, CLOSE = "<think>", "</think>"

ReasoningPiece = tuple[str, bool]
"""A text, and whether it was only thought."""


class ReasoningSplitter:
    """Tells thoughts from the answer; the tags and the white space at their inner and outer sides are neither.

    Args:
        thinking: whether the template has opened the first tag already.
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self.thinking = thinking
        self._held = ""
        self._begin = True  # of the answer, where alone thoughts may open, or of the text behind a tag

    def push(self, text: str) -> list[ReasoningPiece]:
        """What is certain by now."""
        self._held += text
        return list(self._pieces(last=False))

    def flush(self) -> list[ReasoningPiece]:
        """What was held back."""
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
        """How much of what is held cannot be the beginning of a closing tag and the white space before it."""
        keep = max((n for n in range(len(CLOSE)) if self._held.endswith(CLOSE[:n])), default=0)
        return len(self._held[: len(self._held) - keep].rstrip())

    def _say(self, text: str, thought: bool) -> Iterator[ReasoningPiece]:
        if self._begin:
            text = text.lstrip("\n")
        if text:
            self._begin = False
            yield text, thought


def strip_reasoning(text: str, *, thinking: bool = False) -> str:
    """An answer without what was thought before it."""
    thoughts = ReasoningSplitter(thinking=thinking)
    return "".join(piece for piece, thought in [*thoughts.push(text), *thoughts.flush()] if not thought)
