"""``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` of an engine's commands, one after the other."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any


class Streams:
    """The client's files as the three streams, while its command runs."""

    def __init__(self) -> None:
        self.log = os.dup(2)

    def begin(self, used: Callable[[str], None], settings: list[dict[str, Any]]) -> None:
        """Open the three as the client had them. New ones each time: a file and a pipe differ in what they can do.

        Args:
            used: called with ``read`` and ``wrote`` before a command reads its input and writes its output.
            settings: arguments of ``io.TextIOWrapper`` for each.
        """
        stdin, stdout, stderr = settings
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Watched(0, "r", lambda: used("read"))), **stdin)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Watched(1, "w", lambda: used("wrote"))), **stdout)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), **stderr)

    def end(self) -> None:
        """Write what is left, and point all three to nothing."""
        _flush()
        null = os.open(os.devnull, os.O_RDWR)
        for number, other in enumerate((null, null, self.log)):
            os.dup2(other, number)
        os.close(null)
        _flush()  # what a closed pipe did not take


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


class _Watched(io.FileIO):
    """A file that says when it is used."""

    def __init__(self, number: int, mode: str, used: Callable[[], None]) -> None:
        super().__init__(number, mode, closefd=False)
        self.used = used

    def readinto(self, buffer: Any) -> Any:
        self.used()
        return super().readinto(buffer)

    def readall(self) -> Any:
        self.used()
        return super().readall()

    def write(self, data: Any) -> Any:
        self.used()
        return super().write(data)
