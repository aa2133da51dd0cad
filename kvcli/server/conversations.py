"""Conversations in memory: the next message reads only what is new."""

from __future__ import annotations

from collections.abc import Sequence

from kvcli.cache.context import Context
from kvcli.engine.kept_tokens import KeptTokens


class Conversations:
    """The last tokens of conversations, dropped least recently used first. All methods belong to one event loop.

    Args:
        limit: bytes of all together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: list[KeptTokens] = []

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def take(self, context: Context | None, ids: Sequence[int]) -> KeptTokens:
        """The conversation that shares the most first tokens with ``ids``, removed from here; or an empty one."""
        best = max(self._kept, key=lambda kept: kept.shared(context, ids), default=None)
        if best is None or not best.shared(context, ids):
            return KeptTokens()
        self._kept.remove(best)
        return best

    def keep(self, kept: KeptTokens) -> None:
        self._kept.append(kept)
        while self._kept and self.nbytes > self.limit:
            self._kept.pop(0)

    def forget(self, context: Context | None) -> None:
        """Drop the conversations after a context, which leaves memory."""
        self._kept = [kept for kept in self._kept if kept.cache is None or kept.cache.context is not context]
