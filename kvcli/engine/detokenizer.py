"""Incremental detokenization with stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Converts token ids to text incrementally; withholds text that may begin a stop string."""

    def __init__(self, tokenizer: object, stop: Sequence[str]) -> None:
        self._backend = tokenizer._tokenizer  # type: ignore[attr-defined]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(filter(None, stop))
        self._pending = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the text that is now final."""
        self._pending += self._stream.step(self._backend, token) or ""
        starts = [start for s in self._stop if (start := self._pending.find(s)) >= 0]
        if starts:
            self._pending, self.stopped = self._pending[: min(starts)], True
            return self.flush()
        withheld = max((n for s in self._stop for n in range(len(s)) if n and self._pending.endswith(s[:n])), default=0)
        return self._release(len(self._pending) - withheld)

    def flush(self) -> str:
        """Return the withheld text."""
        return self._release(len(self._pending))

    def _release(self, count: int) -> str:
        piece, self._pending = self._pending[:count], self._pending[count:]
        self.text += piece
        return piece
