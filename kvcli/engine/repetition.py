"""Detects a greedy answer that repeats itself."""

from __future__ import annotations


class RepetitionDetector:
    """Notices that an answer says only what it has just said, over and over.

    A greedy answer that does so never ends: the same tokens in front make the same token next. A list may repeat a
    line a few times, so it takes :attr:`TURNS` more turns of the same tokens, and :attr:`LEAST` tokens.
    """

    TURNS, LEAST, LONGEST = 3, 192, 256

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._runs: dict[int, int] = {}

    def push(self, token: int) -> bool:
        """Whether the answer goes in circles, with this token at its end."""
        before = self._ids[: -self.LONGEST - 1 : -1]
        self._runs = {back: self._runs.get(back, 0) + 1 for back, other in enumerate(before, 1) if other == token}
        self._ids.append(token)
        return any(run >= max(self.LEAST, self.TURNS * back) for back, run in self._runs.items())
