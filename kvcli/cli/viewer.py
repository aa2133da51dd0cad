"""Links to places in documents, and the program that shows them at their page."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TextIO
from urllib.parse import quote as percent

from kvcli.cli.views import terminal
from kvcli.documents.reader import is_url
from kvcli.utils import child_process

VIEWERS = {
    "evince": ("--page-index={page}", "{file}"),
    "okular": ("--page", "{page}", "{file}"),
    "zathura": ("--page={page}", "{file}"),
    "sioyek": ("--page", "{page}", "{file}"),
    "xreader": ("--page-index={page}", "{file}"),
    "atril": ("--page-index={page}", "{file}"),
}
"""Programs that open a PDF at a page, in the order in which they are tried."""

_LINKING = ("iTerm.app", "WezTerm", "vscode", "ghostty", "Hyper", "Tabby", "rio")
_LINKING_TERMS = ("xterm-kitty", "xterm-ghostty", "alacritty", "foot", "contour", "wezterm")
LINK = re.compile(r"\x1b\]8;;[^\x1b]*\x1b\\")


def link(file: str, page: int | None = None, quote: str = "") -> str | None:
    """The address of a place: ``file:///…/book.pdf#page=22``; ``None`` if there is no such file (standard input)."""
    if is_url(file):
        words = " ".join(quote.split()[:8])
        part = f"#page={page}" if page is not None else f"#:~:text={percent(words, safe='')}" if words else ""
        return file.partition("#")[0] + part
    try:
        path = Path(file).absolute()
        return path.as_uri() + ("" if page is None else f"#page={page}") if path.is_file() else None
    except (OSError, ValueError):
        return None


def linked(text: str, address: str | None, stream: TextIO) -> str:
    """``text`` as a link (OSC 8), if the terminal of a stream is known to show links."""
    if address is None or not shows_links(stream):
        return text
    return f"\x1b]8;;{terminal.strip_control(address)}\x1b\\{text}\x1b]8;;\x1b\\"


def shows_links(stream: TextIO) -> bool:
    """Whether a terminal shows OSC 8 links. ``FORCE_HYPERLINK=1`` or ``0`` says it for one that is not known."""
    if not terminal.is_terminal(stream):
        return False
    env = os.environ
    if (forced := env.get("FORCE_HYPERLINK")) is not None:
        return forced not in ("", "0", "false")
    if env.get("TMUX") or env.get("TERM", "").startswith(("screen", "tmux")):
        return False  # what is outside is not known
    vte = env.get("VTE_VERSION", "")
    return bool(
        env.get("TERM_PROGRAM") in _LINKING
        or env.get("TERM", "").startswith(_LINKING_TERMS)
        or env.get("WT_SESSION")
        or env.get("KONSOLE_VERSION")
        or (vte.isdecimal() and int(vte) >= 5000)
    )


def show(file: str, page: int | None, quote: str) -> str | None:
    """Open a document at a place, in a program that runs on; returns its name, ``None`` without a screen or program."""
    address = link(file, page, quote)
    command: list[str] | None = None
    if address is None or not _has_screen():
        return None
    if page is not None and not is_url(file):
        program = next((name for name in VIEWERS if shutil.which(name)), None)
        if program is not None:
            places = {"page": page, "file": str(Path(file).absolute())}
            command = [program, *(part.format(**places) for part in VIEWERS[program])]
    if command is not None:
        _start(command)
        return command[0]
    import webbrowser

    return "the browser" if webbrowser.open(address) else None


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _start(command: list[str]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        child_process.detach([shutil.which(command[0]) or command[0], *command[1:]], null)
    finally:
        os.close(null)
