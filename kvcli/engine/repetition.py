"""Detection of greedy answers that repeat themselves."""

from __future__ import annotations


class RepetitionDetector:
    """Detects a cycle at the end of an answer.

    A greedy answer in a cycle never ends. A list may repeat a line a few times, so a cycle counts only after
    :attr:`REPEATS` repetitions and at least :attr:`MIN_TOKENS` tokens. Its period is at most :attr:`MAX_PERIOD` tokens.
    """

    REPEATS, MIN_TOKENS, MAX_PERIOD = 3, 192, 256

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._runs: dict[int, int] = {}

    def push(self, token: int) -> bool:
        """Add a token; return whether the answer now ends in a cycle."""
        before = self._ids[: -self.MAX_PERIOD - 1 : -1]
        self._runs = {period: self._runs.get(period, 0) + 1 for period, id in enumerate(before, 1) if id == token}
        self._ids.append(token)
        return any(run >= max(self.MIN_TOKENS, self.REPEATS * period) for period, run in self._runs.items())
