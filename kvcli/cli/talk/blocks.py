"""Markdown as it comes, printed block by block: nothing that stands on the screen is drawn again.

A block ends at a blank line outside a fence, or with its fence. Only the last, unfinished line of an answer is live:
one row, cut to the screen's width, taken away when its block is printed.
"""

from __future__ import annotations

import re
import sys

from kvcli.cli import render

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


class Blocks:
    """Splits a stream of text into finished Markdown blocks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._fence = ""

    @property
    def unfinished(self) -> str:
        """The last line that is not blank, of the block that is being made."""
        return self._line or next((line for line in reversed(self._lines) if line.strip()), "")

    def push(self, text: str) -> list[str]:
        """The blocks that are finished by more text."""
        done: list[str] = []
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            done += self._take(line)
        return done

    def flush(self) -> list[str]:
        """What is left, as the last block."""
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
        if match:
            before = self._close()
            self._fence = match[1]
            self._lines.append(line)
            return before
        if not line.strip():
            return self._close()
        self._lines.append(line)
        return []

    def _close(self) -> list[str]:
        block, self._lines, self._fence = "\n".join(self._lines), [], ""
        return [block] if block.strip() else []


class Paper:
    """An answer on a terminal."""

    def __init__(self) -> None:
        self.console = render.console(sys.stdout)
        self._blocks = Blocks()
        self._live = False
        self._printed = 0

    def write(self, text: str) -> None:
        """A piece of the answer."""
        for block in self._blocks.push(render.plain(text)):
            self._print(block)
        self._show(self._blocks.unfinished)

    def end(self) -> None:
        """The answer is complete, or broken off."""
        for block in self._blocks.flush():
            self._print(block)
        self._show("")

    def _print(self, block: str) -> None:
        from rich.markdown import Markdown

        self._show("")
        if self._printed:
            self.console.print()
        self.console.print(Markdown(block), soft_wrap=False)
        self._printed += 1

    def _show(self, line: str) -> None:
        """Put ``line`` into the live row, or take the row away."""
        from rich.cells import set_cell_size

        if self._live:
            sys.stdout.write("\r\x1b[K")
        room = max(1, self.console.width - 1)
        shown = line.expandtabs(4)
        while len(shown) > 1 and _cells(shown) > room:
            shown = "…" + shown[max(2, len(shown) // 8) :]
        self._live = bool(shown)
        sys.stdout.write(set_cell_size(shown, min(room, _cells(shown))))
        sys.stdout.flush()


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


class Lines:
    """An answer where no terminal is: as it comes, ending in one newline."""

    def __init__(self) -> None:
        self._held = ""

    def write(self, text: str) -> None:
        """A piece of the answer; line ends are held back until more text shows that they are not the last."""
        text = self._held + render.plain(text)
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        sys.stdout.write(body)
        sys.stdout.flush()

    def end(self) -> None:
        """The answer is complete, or broken off."""
        self._held = ""
        sys.stdout.write("\n")
        sys.stdout.flush()


class Thoughts:
    """Takes ``<think> … </think>`` out of an answer as it comes."""

    _MARKS = ("<think>", "</think>")

    def __init__(self, *, hide: bool) -> None:
        self.hide = hide
        self.thinking = False
        self._held = ""

    def push(self, text: str) -> str:
        """What is to be shown by now."""
        if not self.hide:
            return text
        self._held += text
        shown = ""
        while True:
            mark = self._MARKS[self.thinking]
            at = self._held.find(mark)
            if at < 0:
                keep = max((n for n in range(len(mark)) if n and self._held.endswith(mark[:n])), default=0)
                sure = len(self._held) - keep
                shown += "" if self.thinking else self._held[:sure]
                self._held = self._held[sure:]
                return shown
            shown += "" if self.thinking else self._held[:at]
            self._held = self._held[at + len(mark) :].lstrip("\n") if self.thinking else self._held[at + len(mark) :]
            self.thinking = not self.thinking

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return "" if self.thinking else held
