"""Streamed Markdown, printed block by block; printed blocks are never drawn again.

A block ends at a blank line outside a fence, or with its fence. Indented text after a blank line continues a list.
Until a block is finished, a live row shows the end of its last line.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row

if TYPE_CHECKING:
    from rich.segment import Segment

LIVE = 48
"""Most cells of the live row, so that it stays one row if the window becomes narrower."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])\s")


class MarkdownBlocks:
    """Splits a stream of text into finished Markdown blocks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._fence = ""

    @property
    def unfinished(self) -> str:
        """The last line that is not blank of the unfinished block."""
        return self._line or next((line for line in reversed(self._lines) if line.strip()), "")

    def push(self, text: str) -> list[str]:
        """Add text; returns the blocks that it finishes."""
        done: list[str] = []
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            done += self._take(line)
        return done

    def mark(self, text: str) -> None:
        """Add ``text`` after the last word, unless that is printed already or code."""
        if self._fence:
            return
        if self._line.strip():
            self._line = f"{self._line.rstrip()} {text}"
        elif self._lines:
            last = max(i for i, line in enumerate(self._lines) if line.strip())
            self._lines[last] = f"{self._lines[last].rstrip()} {text}"

    def flush(self) -> list[str]:
        """The rest as the last block."""
        line, self._line = self._line, ""
        done = self._take(line) if line else []
        return [*done, *self._close()]

    def _take(self, line: str) -> list[str]:
        match = _FENCE.fullmatch(line)
        if self._fence:
            self._lines.append(line)
            if match and match[1].startswith(self._fence) and not match[2].strip():
                return self._close()
            return []
        before: list[str] = []
        if self._lines and not self._lines[-1].strip() and not line.startswith("  ") and line.strip():
            before = self._close()  # the list ended
        if match:
            before += self._close()
            self._fence = match[1]
        elif not line.strip() and not (self._lines and _ITEM.match(self._lines[0])):
            return self._close()
        self._lines.append(line)
        return before

    def _close(self) -> list[str]:
        block, self._lines, self._fence = "\n".join(self._lines).rstrip("\n"), [], ""
        return [block] if block.strip() else []


class TerminalAnswer:
    """An answer on a terminal."""

    def __init__(self) -> None:
        self.console = terminal.console(sys.stdout)
        self._blocks = MarkdownBlocks()
        self._live = 0
        self._printed = 0
        self._thought = False

    def write(self, text: str, *, thought: bool = False) -> None:
        """Write a piece of the answer, or of the model's reasoning, which is dim plain text."""
        if thought != self._thought:
            self._flush()
            self._thought = thought
        for block in self._blocks.push(terminal.strip_control(text)):
            self._print(block)
        self._show(self._blocks.unfinished)

    def wait(self, what: str) -> None:
        """Show a message in the live row."""
        self._show(what)

    def end(self, marks: str = "") -> None:
        """End the answer, complete or not; ``marks`` follow its last word."""
        if marks:
            self._blocks.mark(marks)
        self._flush()

    def _flush(self) -> None:
        for block in self._blocks.flush():
            self._print(block)
        self._show("")

    def _print(self, block: str) -> None:
        from rich.markdown import Markdown
        from rich.segment import Segment, Segments
        from rich.text import Text

        self._show("")
        if self._printed:
            self.console.print()
        shown = Text(block.strip(), style="dim") if self._thought else Markdown(block, code_theme="ansi_dark")
        out: list[Segment] = []
        for line in self.console.render_lines(shown, self.console.options.update(no_wrap=False), pad=False):
            out += [*_trimmed(line), Segment.line()]
        self.console.print(Segments(out), end="")
        self._printed += 1

    def _show(self, line: str) -> None:
        """Show ``line`` in the live row, or remove the row."""
        from rich.cells import set_cell_size

        row.clear()

        width = max(2, self.console.width)
        if self._live:
            # In a narrower window the row takes several.
            up = (self._live - 1) // width
            sys.stdout.write(f"\x1b[{up}A\r\x1b[J" if up else "\r\x1b[K")
        room = min(LIVE, width - 1)
        shown = line.expandtabs(4)
        while len(shown) > 1 and _cells(shown) > room:
            shown = "…" + shown[max(2, len(shown) // 8) :]
        self._live = min(room, _cells(shown))
        sys.stdout.write(set_cell_size(shown, self._live))
        sys.stdout.flush()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without white space at its end, which could wrap."""
    while line:
        *before, (text, style, control) = line
        if style is not None and style.bgcolor is not None and not style.bgcolor.is_default:
            return line
        if text.rstrip():
            from rich.segment import Segment

            return [*before, Segment(text.rstrip(), style, control)]
        line = before
    return line


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


class PlainAnswer:
    """An answer that is not on a terminal: streamed, ending in one newline."""

    def __init__(self) -> None:
        self._held = ""
        self._thought = False

    def write(self, text: str, *, thought: bool = False) -> None:
        """Write a piece of the answer. Line ends at its end wait for more text, because the last ones are dropped."""
        if thought != self._thought:
            self._thought = thought
            text = ("<think>\n" if thought else "\n</think>\n\n") + text
        text = self._held + terminal.strip_control(text)
        body = text.rstrip("\n")
        row.clear()
        self._held = text[len(body) :]
        sys.stdout.write(body)
        sys.stdout.flush()

    def wait(self, what: str) -> None:
        """No effect."""

    def end(self, marks: str = "") -> None:
        """End the answer, complete or not; ``marks`` follow its last word."""
        self._held = ""
        row.clear()
        sys.stdout.write(f" {marks}\n" if marks else "\n")
        sys.stdout.flush()
