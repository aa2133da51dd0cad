"""A row on stderr that shows what a long step does and since when. It imports little: it is the first thing on screen.

The row goes when anything else is printed: :mod:`kvcli.cli.views.terminal` clears it first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

TICK = 0.25
"""Seconds between two states of the row."""

LARGE = 1 << 28
"""Bytes of a file that takes a second to read."""

ERASE = "\r\x1b[K"

_QUICK = {"cache", "config", "logs", "models", "open", "ps", "recipes", "stop", "templates"}
"""Commands that load no model and read no document: they are done at once, unless the machine is busy."""


class Activity:
    """The row of this process. The seconds since its beginning change while other code runs."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._text = ""
        self._detail = ""
        self._began = 0.0
        self._drawn = False
        self._thread: threading.Thread | None = None

    def start(self, text: str, *, later: bool = False) -> None:
        """Show the row until something is printed. No effect if stderr is not a terminal.

        Args:
            text: what is done.
            later: show it only if nothing is printed within a quarter of a second.
        """
        if not _terminal():
            return
        with self._lock:
            if not self._text:
                self._began = time.monotonic()
            self._text = "".join(c for c in text if c.isprintable())
            if not later:
                self._draw()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def share(self, what: str, done: int, total: int) -> None:
        """Show beside the row how much of a large file is read; nothing if there is no row."""
        self._detail = f" · reads {what} once {100 * done // total} %" if LARGE <= total > done else ""

    def clear(self) -> None:
        """Remove the row, and end it."""
        with self._lock:
            self._text = ""
            if self._drawn:
                self._drawn = False
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(ERASE)
                    sys.stderr.flush()

    def hand_over(self) -> bool:
        """End the row, but leave it on the terminal for the process that prints next; whether it is there."""
        with self._lock:
            drawn, self._drawn, self._text = self._drawn, False, ""
        return drawn

    def take_over(self) -> None:
        """Another process has left its row on this terminal."""
        self._drawn = True

    def _draw(self) -> None:
        seconds = time.monotonic() - self._began
        row = f"{self._text}{self._detail} {'.' * (1 + int(seconds / TICK) % 3):<3}" + (
            f" {seconds:.0f} s" if seconds >= 1 else ""
        )
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(ERASE + row[: _columns() - 1])
            sys.stderr.flush()
            self._drawn = True

    def _run(self) -> None:
        while True:
            time.sleep(TICK)
            with self._lock:
                if not self._text:
                    self._thread = None
                    return
                self._draw()


row = Activity()
"""The terminal is one, and so is its row."""


def announce(args: list[str]) -> None:
    """Show that a command has begun, a slow one at once."""
    first, helps = args[0] if args else "--help", {"-h", "--help"}
    if first == "mcp" or not (first.isalpha() or first in helps) or {"-q", "--quiet"} & {*args}:
        return
    quick = not first.isalpha() or first in {*_QUICK, "help"} or {*helps, "--quotes-only"} & {*args}
    row.start("starting kvcli", later=bool(quick))


def _terminal() -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return False


def _columns() -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80
