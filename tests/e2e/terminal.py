"""A chat on a terminal of its own, and what stands on its screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

from tests.e2e import forked
from tests.e2e.conftest import PROGRAM

PATIENCE = 600.0
"""Seconds without a byte until a screen is given up: other work may have the machine."""


class Screen(pyte.HistoryScreen):
    """A terminal that scrolls back, also over what a lower window has no room for."""

    def resize(self, lines: int, columns: int) -> None:
        row = self.cursor.y
        over = max(0, row + 1 - lines)
        self.cursor.y = self.lines - 1
        for _ in range(over):
            self.index()
        self.cursor.y = row - over
        for gone in range(lines, self.lines):
            self.buffer.pop(gone, None)
        self.lines = lines
        super().resize(lines, columns)


class Talk:
    """A chat. What is waited for is looked for on the screen, with all that has left it."""

    def __init__(self, args: list[str], environment: dict[str, str], folder: Path, size: tuple[int, int]) -> None:
        rows, columns = size
        self.screen = Screen(columns, rows, history=100_000, ratio=0.001)
        self.stream = pyte.ByteStream(self.screen)
        clean = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        self.child = forked.spawn(
            PROGRAM[0], [*PROGRAM[1:], "chat", *args], env=clean, cwd=str(folder), dimensions=size
        )
        self.child.delaybeforesend = None
        self.screen.write_process_input = self.child.send  # where the cursor is, when that is asked

    @property
    def rows(self) -> list[str]:
        """All rows from the first one on, as they stand now."""
        above = ["".join(line[x].data for x in range(max(line, default=-1) + 1)) for line in self.screen.history.top]
        return [row.rstrip() for row in [*above, *self.screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    @property
    def typed(self) -> str | None:
        """What stands behind the prompt; ``None`` where there is none."""
        rows = [row for row in self.screen.display[:-1] if row.strip()]
        at = next((i for i in reversed(range(len(rows))) if rows[i].startswith(">")), None)
        return None if at is None else "\n".join(row[2:].rstrip() for row in rows[at:])

    @property
    def scrolled(self) -> int:
        """Rows that have left the screen."""
        return len(self.screen.history.top)

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def wait(self, found: str | Callable[[], object]) -> None:
        """Until a pattern is on the screen, or something is true."""

        def there() -> bool:
            return bool(re.search(found, self.text) if isinstance(found, str) else found())

        while not there():
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=PATIENCE))
            except pexpect.TIMEOUT:
                raise AssertionError(f"{found} is not on the screen:\n{self.text}") from None
            except pexpect.EOF:
                assert there(), f"{found} is not on the screen, and the chat has ended:\n{self.text}"

    def prompt(self, turn: int) -> None:
        """Until a turn can be typed: the bottom line counts those before it, and the prompt is empty."""

        def there() -> bool:
            bottom = self.screen.display[-1]
            return (
                not bottom.startswith(" ") and bool(re.search(rf"\b{turn - 1} turns?\b", bottom)) and self.typed == ""
            )

        self.wait(there)

    def key(self, keys: str, typed: str) -> None:
        """Press keys and wait for what then stands behind the prompt."""
        self.send(keys)
        self.wait(lambda: self.typed == typed)

    def say(self, line: str, turn: int) -> str:
        """Type a line, send it, and wait for the next prompt; returns what has come between."""
        self.key(line, line)
        self.send("\r")
        self.prompt(turn)
        rows = self.rows
        at = max(i for i, row in enumerate(rows) if row == f"> {line}")
        return "\n".join(rows[at + 1 :])

    def end(self) -> int:
        """Wait for its end; returns the exit code, negative where a signal ended it."""
        try:
            while True:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=PATIENCE))
        except pexpect.EOF:
            self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus)


def squeezed(text: str) -> str:
    """Without white space."""
    return "".join(text.split())
