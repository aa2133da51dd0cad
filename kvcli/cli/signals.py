"""Ctrl-C and SIGTERM: as exceptions, and deferred until the current step is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, ClassVar

from kvcli.errors import KvcliError


class Terminated(BaseException):
    """SIGTERM arrived."""


INTERRUPTS = (KeyboardInterrupt, Terminated)
"""What a person or the system raises to stop the work; catch these to keep what is there."""


class Interrupted(KvcliError):
    """The work was stopped from outside; the message says what was kept and what was lost."""

    code: ClassVar[str] = "interrupted"

    def __init__(self, message: str, hint: str | None = None, *, cause: BaseException) -> None:
        super().__init__(message, hint)
        self.exit = exit_code_for(cause)  # type: ignore[misc]  # of this one: 130 or 143


def exit_code_for(cause: BaseException) -> int:
    """The exit code of one of ``STOPS``."""
    return 143 if isinstance(cause, Terminated) else 130


def install_sigterm() -> None:
    """Turn SIGTERM into an exception, so that screens are restored and partial answers kept."""

    def stop(_signal: int, _frame: object) -> None:
        raise Terminated

    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, stop)


class DeferredSignals:
    """Work can be saved between its pieces: the first Ctrl-C or SIGTERM waits for the one at hand, the second does not.

    ``cause`` is what arrived. Outside the main thread signals cannot be had, and nothing waits.
    """

    def __init__(self) -> None:
        self.cause: BaseException | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        with suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        again = self.cause is not None
        self.cause = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        if again:
            raise self.cause


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into :class:`Interrupted`, which says what was interrupted."""
    try:
        yield
    except INTERRUPTS as stop:
        raise Interrupted(f"interrupted while {what}", "the same command again", cause=stop) from None
