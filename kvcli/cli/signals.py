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
"""What Ctrl-C and SIGTERM raise; catch these to save partial work."""


class Interrupted(KvcliError):
    """Ctrl-C or SIGTERM ended the work; the message says what is saved."""

    code: ClassVar[str] = "interrupted"

    def __init__(self, message: str, hint: str | None = None, *, cause: BaseException) -> None:
        super().__init__(message, hint)
        self.exit = exit_code_for(cause)  # type: ignore[misc]  # 130 or 143


def exit_code_for(cause: BaseException) -> int:
    """The exit code for one of ``INTERRUPTS``."""
    return 143 if isinstance(cause, Terminated) else 130


def install_sigterm() -> None:
    """Turn SIGTERM into an exception, so that the terminal is restored and partial answers are kept."""

    def stop(_signal: int, _frame: object) -> None:
        raise Terminated

    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, stop)


class DeferredSignals:
    """Defers the first Ctrl-C or SIGTERM until the current chunk is saved; a second one stops at once.

    ``cause`` is the exception for the signal that arrived. No effect outside the main thread.
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
    """Turn Ctrl-C and SIGTERM into :class:`Interrupted` with the message "interrupted while ``what``"."""
    try:
        yield
    except INTERRUPTS as stop:
        raise Interrupted(f"interrupted while {what}", "run the same command again", cause=stop) from None
