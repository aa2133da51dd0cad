"""Lines that end between words, as wide as the terminal is; also of text that is still being written."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TextIO

FALLBACK = 80
"""Columns of a terminal that does not say how wide it is."""

_PIECE = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\|\n|[ \t]+|[^\s\x1b]+|.", re.DOTALL)
_WHOLE = re.compile(r"(\t| {4,}|\||```|~~~)")
"""How a line begins that is left as it is: code and tables."""

_FENCE = ("```", "~~~")


def columns(stream: TextIO) -> int:
    """Width of the terminal of a stream."""
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns or FALLBACK
    return FALLBACK


def wrapped(text: str, width: int, indent: int = 0) -> str:
    """One paragraph in lines of ``width`` columns, all but the first indented by ``indent`` blanks."""
    wrap = WordWrap(width, indent)
    return wrap.feed(text) + wrap.flush()


class WordWrap:
    """Breaks a growing text at blanks. Escape sequences have no width, and code and tables are left alone.

    Args:
        width: columns. It may be changed at any time.
        indent: blanks before each line that a break begins.
        at: columns of the first line that are written already.
    """

    def __init__(self, width: int, indent: int = 0, at: int = 0) -> None:
        self.width = width
        self.indent = indent if indent < width // 2 else 0
        self._at = at  # columns of this line that are written
        self._blank = ""  # before the next word, written only if the word stays on this line
        self._held = ""  # the end of the text: a word that may go on
        self._cut = False  # the last word is longer than a line, and what follows may belong to it
        self._line = ""  # the beginning of this line, as far as it decides what the line is
        self._fenced = False

    def feed(self, text: str) -> str:
        """Add text and return the part that can be printed. The last word waits for the blank after it."""
        pieces = _PIECE.findall(self._held + text)
        self._held = ""
        if pieces and not pieces[-1].isspace() and not (self._cut and len(pieces) == 1) and not self._long(pieces[-1]):
            self._held = pieces.pop()
        return "".join(map(self._put, pieces))

    def flush(self) -> str:
        """The rest. The next text begins a new line."""
        rest = self.rest()
        self._blank = self._line = ""
        self._at, self._cut = 0, False
        return rest

    def rest(self) -> str:
        """The word that may go on. The next text follows it on its line."""
        rest, self._held = self._put(self._held) if self._held else "", ""
        return rest

    def _put(self, piece: str) -> str:
        goes_on, self._cut = self._cut, False
        if piece == "\n":
            if self._line.startswith(_FENCE):
                self._fenced = not self._fenced
            before = self._blank if self._whole() else ""
            self._at, self._blank, self._line = 0, "", ""
            return before + "\n"
        if len(self._line) < 8:
            self._line += piece
        if piece.startswith("\x1b"):
            return piece
        if piece.isspace():
            self._blank += piece
            return ""
        before, self._blank = self._blank, ""
        size, room = cells(piece), self.width - self._at - cells(before)
        self._cut = goes_on or self._long(piece)
        if size <= room or self._whole():
            self._at += cells(before) + size
            return before + piece
        if self._cut:
            return (before if cells(piece[0]) <= room else "") + self._broken(piece, room)
        self._at = self.indent + size
        return "\n" + " " * self.indent + piece

    def _broken(self, word: str, room: int) -> str:
        """A word over several lines; ``room`` columns are left on the first."""
        out, self._at = "", self.width - max(0, room)
        for c in word:
            if self._at + (size := cells(c)) > self.width:
                out += "\n" + " " * self.indent
                self._at = self.indent
            out += c
            self._at += size
        return out

    def _long(self, word: str) -> bool:
        """Whether a word is longer than a line, or of a script without blanks. A longer word stays so."""
        size = cells(word)
        return size > self.width - self.indent or size > len(word)

    def _whole(self) -> bool:
        return self._fenced or _WHOLE.match(self._line) is not None


def cells(text: str) -> int:
    """How many columns a text takes."""
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)
