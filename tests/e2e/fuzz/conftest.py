"""How long one damaged file may take, and how many there are: ``KVCLI_FUZZ=20`` makes twenty times as many."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kvcli.errors import KvcliError

TIMES = int(os.environ.get("KVCLI_FUZZ", "1"))
PATIENCE = 20.0
"""Seconds of processor time for one file of a few thousand bytes; they take a hundredth of a second."""


@contextmanager
def in_time(name: str) -> Iterator[None]:
    """Fail where one file takes for ever; a busy machine does not count."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{name} takes longer than {PATIENCE:.0f} seconds")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def clear(error: KvcliError, name: str) -> None:
    """A refusal names the file in one line and says what helps."""
    assert name in error.message
    assert "\n" not in error.message
    assert error.hint
