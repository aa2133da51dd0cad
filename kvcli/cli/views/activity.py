"""A row on stderr that shows what a long step does and since when. It imports little: it is the first thing on screen.

The row goes when anything else is printed: :mod:`kvcli.cli.views.terminal` clears it first. Lines may stand above it,
as what is known already; they come and go with it, and with a progress bar.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable

TICK = 0.25
"""Seconds between two states of the row."""

LARGE = 1 << 28
"""Bytes of a file that takes a second to read."""

PATIENCE = 0.5
"""Seconds before lines are shown above the row: what takes less time does not flash."""

MARGIN = 3
"""Columns at the right that stay empty: "^C" there begins no new line."""

ERASE = "\r\x1b[K"

_STYLE = re.compile(r"\x1b(?:\[[0-9;]*m|\]8;[^\x1b]*\x1b\\)")

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
        self._above: Callable[[int, int], list[str]] | None = None
        self._given = 0.0
        self._lines: list[str] = []  # that are on the terminal, above the row
        self._row, self._columns = "", 0
        self._thread: threading.Thread | None = None

    @property
    def visible(self) -> bool:
        """Whether there is a terminal for the row."""
        return _terminal()

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
            before, self._text = self._text, "".join(c for c in text if c.isprintable())
            if not later and not (self._drawn and before == self._text):
                self._draw()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def share(self, what: str, done: int, total: int) -> None:
        """Show beside the row how much of a large file is read; nothing if there is no row."""
        self._detail = f" · reads {what} once {100 * done // total} %" if LARGE <= total > done else ""

    def keep_above(self, lines: Callable[[int, int], list[str]] | None) -> None:
        """Show lines above the row from now on, whenever there is one.

        Args:
            lines: makes them for a terminal of so many columns and rows; ``None`` for no lines.
        """
        with self._lock:
            if self._above is None:
                self._given = time.monotonic()
            self._above = lines

    def above(self) -> list[str]:
        """The lines, if they are to be shown by now."""
        if self._above is None or time.monotonic() - self._given < PATIENCE:
            return []
        return self._above(*size())

    def clear(self) -> None:
        """Remove the row and the lines above it, and end it."""
        with self._lock:
            self._text = ""
            if self._drawn:
                self._drawn = False
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(self._erase())
                    sys.stderr.flush()

    def _erase(self) -> str:
        """Codes that remove lines and row; in a window that became narrower each may take several rows."""
        lines, self._lines, rows = [*self._lines, self._row], [], len(self._lines) + 1
        if (columns := size()[0]) < self._columns and not _cuts_off():
            from kvcli.cli.views.wrap import cells

            rows = sum(max(1, -(-cells(_STYLE.sub("", line)) // columns)) for line in lines)
        return ERASE + "\x1b[A\x1b[2K" * (rows - 1)

    def hand_over(self) -> bool:
        """End the row, but leave it on the terminal for the process that prints next; whether it is there."""
        with self._lock:
            drawn, self._drawn, self._text = self._drawn, False, ""
        return drawn

    def take_over(self) -> None:
        """Another process has left its row on this terminal."""
        self._drawn = True

    def _draw(self) -> None:
        if not _terminal():  # foreign code writes to stderr, and is not to be seen
            return
        seconds = time.monotonic() - self._began
        row = f"{self._text}{self._detail} {'.' * (1 + int(seconds / TICK) % 3):<3}" + (
            f" {seconds:.0f} s" if seconds >= 1 else ""
        )
        lines, erase, columns = self.above(), ERASE, size()[0]
        if lines != self._lines or columns < self._columns:
            erase = self._erase() + "".join(f"{line}\n" for line in lines)
        self._lines, self._row, self._columns = lines, row[: columns - MARGIN], columns
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(erase + self._row)
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


def _cuts_off() -> bool:
    """Whether a terminal that becomes narrower cuts lines off; most wrap them again."""
    return bool({"XTERM_VERSION", "STY"} & {*os.environ}) or os.environ.get("TERM") == "linux"


def size() -> tuple[int, int]:
    """Columns and rows of the terminal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
        return columns or 80, rows or 24
    return 80, 24
