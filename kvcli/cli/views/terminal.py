"""Lines on the terminal. stdout carries the answer, JSON or a table; everything else goes to stderr.

No escape byte is written to a stream that is not a terminal, whatever the environment says. Escape bytes from
documents, models and file names are removed.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TextIO

from kvcli.cli.views import wrap
from kvcli.cli.views.activity import row
from kvcli.errors import SCHEMA, KvcliError

if TYPE_CHECKING:
    from rich.console import Console

    from kvcli.documents import Document


LABEL = 9
"""Width of the first column of a note."""

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of what follows: a name could be shown as another one."""
_LINES = re.compile(r"\s*[\r\n]+\s*")


# --- text ---------------------------------------------------------------------------------------------


def strip_control(text: str) -> str:
    """``text`` without control characters, so that a document cannot control the terminal."""
    return _UNSAFE.sub("", text)


def oneline(text: str) -> str:
    """``text`` as one line, safe to print."""
    return strip_control(_LINES.sub(" ", text.strip()))


def count(n: int) -> str:
    """``128412`` as ``128,412``."""
    return f"{n:,}"


def duration(seconds: float) -> str:
    """``8.4 s``, ``22 s``, ``1 min 55 s``, ``1 h 4 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


def share(part: int, whole: int) -> str:
    """``12.8 %``."""
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def plural(n: int, word: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def short_recipe(recipe: object) -> str:
    """``locret 1024`` for ``locret(budget=1024, sinks=48)``."""
    return re.sub(r"\(budget=(\d+)[^)]*\)", r" \1", str(recipe))


def title(document: "Document") -> str:
    """The files of a document, and the number of its pages, in all and without text."""
    named, pages = document.files, document.pages
    files = " ".join(named) if len(named) <= 3 else f"{named[0]} and {len(named) - 1:,} more"
    empty = f", {len(document.without_text):,} without text" if document.without_text else ""
    shown = f" · {plural(len(document.pictures), 'picture')}" if document.pictures else ""
    return files + (f" · {plural(pages, 'page')}{empty}" if pages else "") + shown


# --- streams ------------------------------------------------------------------------------------------


def is_terminal(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that can move its cursor."""
    with suppress(ValueError, AttributeError):
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return False


@contextmanager
def unechoed(stream: TextIO) -> Iterator[None]:
    """Keys that are typed meanwhile wait unseen for the next prompt, and do not appear in the output."""
    if not stream.isatty() or os.name != "posix":
        yield
        return
    import termios

    silent = termios.tcgetattr(stream)
    before = [*silent]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(stream, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSANOW, before)


def console(stream: TextIO) -> "Console":
    """A rich console that writes escape bytes to terminals only, even with ``FORCE_COLOR``."""
    from rich.console import Console

    row.clear()
    tty = is_terminal(stream)
    return Console(
        file=stream,
        force_terminal=tty,
        force_jupyter=False,
        force_interactive=tty,
        color_system="auto" if tty else None,
        no_color=bool(os.environ.get("NO_COLOR")) or None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def write(stream: TextIO, text: str, style: str | None = None) -> None:
    """Write one line, styled if the stream is a terminal."""
    if style and is_terminal(stream):
        from rich.text import Text

        console(stream).print(Text(text, style=style))
    else:
        row.clear()
        stream.write(text + "\n")
        stream.flush()


def paragraph(stream: TextIO, text: str, style: str | None = None, indent: int = 0) -> None:
    """Write one paragraph, on a terminal in lines that end between words, all but the first ``indent`` blanks in."""
    write(stream, wrap.wrapped(text, wrap.columns(stream), indent) if is_terminal(stream) else text, style)


def note(label: str, text: str, *, quiet: bool = False) -> None:
    """Write ``label    text`` to stderr."""
    if quiet:
        return
    text = f"{label:<{LABEL}}{oneline(text)}"
    if is_terminal(sys.stderr):
        from rich.text import Text

        text = wrap.wrapped(text, wrap.columns(sys.stderr), LABEL)
        console(sys.stderr).print(Text.assemble((text[:LABEL], "cyan"), text[LABEL:]))
    else:
        write(sys.stderr, text)


def warn(text: str, *, quiet: bool = False) -> None:
    """Write a warning to stderr."""
    if not quiet:
        paragraph(sys.stderr, f"kvcli: warning: {oneline(text)}", "yellow", indent=2)


def error(problem: KvcliError) -> None:
    """Write an error and its hint to stderr."""
    kind = "" if problem.code == "interrupted" else "error: "
    paragraph(sys.stderr, f"kvcli: {kind}{oneline(problem.message)}", "red", indent=2)
    if problem.hint:
        write(sys.stderr, f"  try: {oneline(problem.hint)}")  # a command to copy, in one piece


def to_json(**body: Any) -> str:
    """An object of the schema ``kvcli/1``, on one line."""
    return json.dumps({"schema": SCHEMA, **body}, ensure_ascii=False)


def print_json(**body: Any) -> None:
    """Write such an object to stdout."""
    row.clear()
    print(to_json(**body), flush=True)


def facts(rows: Iterable[tuple[str, str]], width: int = LABEL) -> None:
    """Write ``label    text`` rows to stdout; a label has ``width`` columns."""
    for label, text in rows:
        paragraph(sys.stdout, f"{label:<{width - 1}} {oneline(text)}", indent=width)


def _shared_widths(widths: Sequence[int], room: int) -> list[int]:
    """Widths of columns that are too wide together: a narrow one keeps its own, the others share the rest."""
    rest, found = room - 2 * (len(widths) - 1), list(widths)
    for left, i in zip(range(len(widths), 0, -1), sorted(range(len(widths)), key=widths.__getitem__), strict=True):
        found[i] = max(1, min(widths[i], rest // left))
        rest -= found[i]
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], optional: Sequence[str] = ()) -> None:
    """Write a table to stdout: aligned columns, a bold heading on a terminal.

    A table that is wider than the terminal loses ``optional`` columns, the first of them first. Then long cells wrap.
    """
    body = [[oneline(cell) for cell in cells] for cells in [columns, *rows]]
    room = wrap.columns(sys.stdout) if is_terminal(sys.stdout) else None
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    for name in optional:
        if room and sum(widths) + 2 * len(widths) - 2 > room:
            at = body[0].index(name)
            body = [cells[:at] + cells[at + 1 :] for cells in body]
            del widths[at]
    lines = [[[cell] for cell in cells] for cells in body]
    if room and sum(widths) + 2 * len(widths) - 2 > room:
        widths = _shared_widths(widths, room)
        lines = [[wrap.wrapped(c, w).split("\n") for c, w in zip(cells, widths, strict=True)] for cells in body]
    for i, row_ in enumerate(lines):
        for parts in zip_longest(*row_, fillvalue=""):
            text = "  ".join(part.ljust(w) for part, w in zip(parts, widths, strict=True)).rstrip()
            write(sys.stdout, text, None if i else "bold")
