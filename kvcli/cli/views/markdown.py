"""Markdown on a terminal, written once as it arrives: nothing that is printed is drawn again.

Words are printed as soon as they are complete, so a paragraph is visible while it is written. A window that changes
its size damages nothing. What needs its end first waits: a span in ``**`` or backquotes of at most :data:`SPAN`
characters, a line of code, a table. Lines end between words, and list items have a hanging indent.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.cli.views.wrap import WordWrap, columns

SPAN = 100
"""Most characters between two marks of emphasis or code."""

_OPEN = re.compile(r"[ \t]*(?:[-+*_#>|`~ \t]*|\d{1,9}[.)]?[ \t]*)")
"""The beginning of a line as long as it may still become a heading, an item, a quote, a fence or a table."""
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(?=\S)")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)")
_QUOTE = re.compile(r" {0,3}>[ \t]?")
_TABLE = re.compile(r" {0,3}\|")

_SPECIAL = re.compile(r"[\\`*_]")
_CODE = re.compile(rf"(`+)(?!`)(.{{1,{SPAN}}}?)(?<!`)\1(?!`)")
_BOLD = re.compile(rf"(\*\*|__)(?=\S)(.{{1,{SPAN}}}?)(?<=\S)\1(?![*\w])")
_ITALIC = re.compile(rf"([*_])(?=[^\s*_])([^*_]{{1,{SPAN}}}?)(?<=\S)\1(?![*\w])")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|>~])")
_STYLES = {"bold": ("\x1b[1m", "\x1b[22m"), "italic": ("\x1b[3m", "\x1b[23m"), "code": ("\x1b[36m", "\x1b[39m")}


def inline(text: str, *, final: bool, before: str = " ") -> tuple[str, str]:
    """Emphasis and code of a line as escape sequences.

    Args:
        text: of one line.
        final: whether the line ends with it.
        before: the character before it.

    Returns:
        what can be written, and the rest, which waits for more text.
    """
    out, at = list[str](), 0
    while (special := _SPECIAL.search(text, at)) is not None:
        start = special.start()
        out.append(text[at:start])
        left = text[start - 1] if start else before
        found, style = _span(text, start, left)
        if found is not None and (final or found.end() < len(text)):
            out.append(_styled(found, style))
            at = found.end()
        elif not final and len(text) - start <= SPAN + 8:
            return "".join(out), text[start:]
        else:
            run = re.compile(r"([`*_])\1*|\\").match(text, start)
            assert run is not None
            out.append(run[0])
            at = run.end()
    return "".join(out) + text[at:], ""


def _span(text: str, start: int, left: str) -> tuple[re.Match[str] | None, str]:
    if text[start] == "\\":
        return _ESCAPED.match(text, start), ""
    if text[start] == "`":
        return _CODE.match(text, start), "code"
    if left.isalnum() or left in "*_":
        return None, ""
    bold = _BOLD.match(text, start)
    return (bold, "bold") if bold else (_ITALIC.match(text, start), "italic")


def _styled(found: re.Match[str], style: str) -> str:
    if not style:
        return found[1]
    inside = found[2].strip() if style == "code" else inline(found[2], final=True)[0]
    on, off = ("", "") if style == "code" and os.environ.get("NO_COLOR") else _STYLES[style]
    return on + inside + off


class MarkdownText:
    """Turns a growing Markdown text into what a terminal shows. The result does not depend on how the text arrives."""

    def __init__(self) -> None:
        self.width = 80
        self._line = ""  # what has come of this line and is not written
        self._begun = False  # whether the kind of this line is known, and its beginning written
        self._heading = False
        self._before = " "
        self._wrap = WordWrap(80)
        self._fence = ""
        self._table: list[str] = []
        self._breaks = 0  # line ends before the next word
        self._any = False

    def feed(self, text: str) -> str:
        """Add text and return the part that can be printed, without line ends at its end."""
        out = list[str]()
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self._line = ""
            out.append(self._put(line, whole=True))
        self._line = rest
        if rest:
            self._line = ""
            out.append(self._put(rest, whole=False))
        return "".join(out)

    def flush(self) -> str:
        """The rest. Ends in one line end, if there is any text."""
        line, self._line = self._line, ""
        out = self._put(line, whole=True) if line or self._begun else ""
        out += self._close_table()
        self._fence, ended = "", self._any
        self._breaks, self._any = 0, False
        return out + "\n" * ended

    def _put(self, line: str, *, whole: bool) -> str:
        """Write a line, or if it is not ``whole``, as much of it as is certain; the rest stays."""
        if self._begun:
            return self._words(line, whole=whole)
        if self._fence:
            return self._code(line) if whole else self._keep(line)
        if not whole and (_OPEN.fullmatch(line) or _FENCE.match(line) or _TABLE.match(line)):
            return self._keep(line)
        if _TABLE.match(line):
            self._table.append(line)
            return ""
        out = self._close_table()
        if not line.strip():
            self._breaks += self._any and self._breaks < 2
            return out
        if (fence := _FENCE.fullmatch(line)) is not None:
            self._fence = fence[1]
            return out
        if _RULE.fullmatch(line):
            return out + self._break() + "─" * min(20, self.width) + self._end()
        opened, words = self._begin(line)
        return out + opened + self._words(words, whole=whole)

    def _keep(self, line: str) -> str:
        self._line = line
        return ""

    def _begin(self, line: str) -> tuple[str, str]:
        """The beginning of a line of text, its bullet, number or bar, and the words after it."""
        out, self._begun, self._heading, self._before = self._break(), True, False, " "
        prefix, used = "", 0
        if (heading := _HEADING.match(line)) is not None:
            self._heading, used = True, heading.end()
        elif (item := _ITEM.match(line)) is not None:
            sign = "•" if item[2] in "-*+" else item[2]
            prefix, used = item[1].expandtabs(4) + sign + " ", item.end()
        elif (quote := _QUOTE.match(line)) is not None:
            prefix, used = "│ ", quote.end()
        elif line[:1].isspace():
            prefix = " " * (len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip()))
            used = len(line) - len(line.lstrip())
        prefix = prefix[: self.width // 2]
        self._wrap = WordWrap(self.width, len(prefix), at=len(prefix))
        return out + prefix + ("\x1b[1m" if self._heading else ""), line[used:]

    def _words(self, text: str, *, whole: bool) -> str:
        self._wrap.width = self.width
        text = text.rstrip() if whole else text
        shown, self._line = inline(text, final=whole, before=self._before)
        self._before = text[: len(text) - len(self._line)][-1:] or self._before
        if self._heading:
            shown = re.sub(r"\x1b\[(?:1|22)m", "", shown)
        out = self._wrap.feed(shown)
        if not whole:
            return out
        self._begun = False
        return out + self._wrap.rest() + ("\x1b[22m" if self._heading else "") + self._end()

    def _code(self, line: str) -> str:
        fence = _FENCE.fullmatch(line)
        if fence and fence[1].startswith(self._fence) and not fence[2].strip():
            self._fence = ""
            self._breaks = max(self._breaks, 2)
            return ""
        return self._break() + line.expandtabs(4) + self._end()

    def _close_table(self) -> str:
        if not self._table:
            return ""
        from rich.console import Console
        from rich.markdown import Markdown

        lines, self._table = self._table, []
        console = Console(width=self.width, force_terminal=True, color_system=None, highlight=False)
        with console.capture() as shown:
            console.print(Markdown("\n".join(lines)))
        rows = [line.rstrip() for line in shown.get().strip("\n").split("\n")]
        self._breaks = 2 if self._any else 0
        out = self._break() + "\n".join(rows)
        self._breaks = 2
        return out

    def _break(self) -> str:
        """The line ends before what comes now."""
        out = "\n" * (self._breaks if self._any else 0)
        self._any, self._breaks = True, 0
        return out

    def _end(self) -> str:
        self._breaks = 1
        return ""


class TerminalAnswer:
    """An answer on a terminal."""

    def __init__(self) -> None:
        self._text = MarkdownText()
        self._reasoning: WordWrap | None = None
        self._shown = False

    def write(self, text: str, *, reasoning: bool = False) -> None:
        """Write a piece of the answer, or of the model's reasoning, which is dim plain text."""
        text = terminal.strip_control(text)
        width = columns(sys.stdout)
        if reasoning:
            if self._reasoning is None:
                self._put(self._text.flush())
                self._reasoning = WordWrap(width)
            self._reasoning.width = width
            self._put(_dim(self._reasoning.feed(text)))
            return
        self._end_thought()
        self._text.width = width
        self._put(self._text.feed(text))

    def wait(self, what: str) -> None:
        """Show a message while nothing is written; without one, remove it."""
        if what:
            row.start(what)
        else:
            row.clear()

    def end(self) -> None:
        """End the answer, complete or not."""
        self._end_thought()
        self._put(self._text.flush() or "\n" * (not self._shown))

    def _end_thought(self) -> None:
        if self._reasoning is not None:
            self._put(_dim(self._reasoning.flush()) + "\n\n")
            self._reasoning = None

    def _put(self, text: str) -> None:
        if text:
            self._shown = True
            row.clear()
            sys.stdout.write(text)
            sys.stdout.flush()


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[22m" if text else ""


class PlainAnswer:
    """An answer that is not on a terminal: streamed to stdout or a file, ending in one newline."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._held = ""
        self._reasoning = False

    def write(self, text: str, *, reasoning: bool = False) -> None:
        """Write a piece of the answer. Line ends at its end wait for more text, because the last ones are dropped."""
        if reasoning != self._reasoning:
            self._reasoning = reasoning
            text = ("<think>\n" if reasoning else "\n</think>\n\n") + text
        text = self._held + terminal.strip_control(text)
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        self._put(body)

    def wait(self, what: str) -> None:
        """No effect."""

    def end(self) -> None:
        """End the answer, complete or not."""
        self._held = ""
        self._put("\n")

    def _put(self, text: str) -> None:
        row.clear()
        self._stream.write(text)
        self._stream.flush()
