"""Token ids to text, one token at a time, with stop texts."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns ids into text piece by piece, holding back what may be the beginning of a stop text."""

    def __init__(self, tokenizer: object, stop: Sequence[str]) -> None:
        self._backend = tokenizer._tokenizer  # type: ignore[attr-defined]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        self._held += self._stream.step(self._backend, token) or ""
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self._held, self.stopped = self._held[: min(found)], True
            return self.flush()
        keep = max((n for s in self._stop for n in range(len(s)) if n and self._held.endswith(s[:n])), default=0)
        return self._release(len(self._held) - keep)

    def flush(self) -> str:
        """Whatever was held back."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        piece, self._held = self._held[:count], self._held[count:]
        self.text += piece
        return piece
