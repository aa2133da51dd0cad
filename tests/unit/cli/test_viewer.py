"""Links to pages, and the programs that open them."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvcli.cli import viewer
from kvcli.cli.views import citations, wrap


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TERM_PROGRAM", "WT_SESSION", "KONSOLE_VERSION", "VTE_VERSION", "TMUX", "FORCE_HYPERLINK", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "shows"),
    [
        ({}, False),
        ({"TERM_PROGRAM": "WezTerm"}, True),
        ({"TERM": "xterm-kitty"}, True),
        ({"VTE_VERSION": "6800"}, True),
        ({"VTE_VERSION": "4000"}, False),
        ({"VTE_VERSION": "6800", "TMUX": "/tmp/x,1,0"}, False),
        ({"FORCE_HYPERLINK": "1"}, True),
        ({"TERM_PROGRAM": "WezTerm", "FORCE_HYPERLINK": "0"}, False),
        ({"TERM": "dumb", "FORCE_HYPERLINK": "1"}, False),
    ],
)
def test_which_terminals_show_links(env: pytest.MonkeyPatch, variables: dict[str, str], shows: bool) -> None:
    for name, value in variables.items():
        env.setenv(name, value)
    assert viewer.shows_links(Terminal()) is shows
    assert not viewer.shows_links(io.StringIO())


def test_links(tmp_path: Path, env: pytest.MonkeyPatch) -> None:
    book = tmp_path / "ein Buch \x1b[1m.pdf"
    book.write_bytes(b"%PDF")
    address = viewer.link(str(book), 22)
    assert address is not None
    assert address.startswith("file:///")
    assert address.endswith("%20%1B%5B1m.pdf#page=22")
    assert viewer.link("stdin") is None
    assert viewer.link("https://example.com/a#b", None, "The net, mended.") == (
        "https://example.com/a#:~:text=The%20net%2C%20mended."
    )
    env.setenv("FORCE_HYPERLINK", "1")
    text = viewer.linked("p. 22", address, Terminal())
    assert viewer.LINK.sub("", text) == "p. 22"
    assert wrap.wrapped(f"[1] {text} words", 12) == wrap.wrapped(f"[1] {text} words", 12).replace("\n\n", "\n")
    assert viewer.LINK.sub("", wrap.wrapped(f"[1] {text} words", 12)) == wrap.wrapped("[1] p. 22 words", 12)
    span = SimpleNamespace(file=str(book), page=22)
    line = citations.with_link("[1] p. 22 “p. 22”", "p. 22", span, "", Terminal())  # type: ignore[arg-type]
    assert viewer.LINK.sub("", line) == "[1] p. 22 “p. 22”"
    assert line.index("\x1b]8") < line.index("“")
    assert citations.with_link("[1] p. 22", "p. 22", span, "", io.StringIO()) == "[1] p. 22"  # type: ignore[arg-type]


def test_a_pdf_opens_at_its_page(tmp_path: Path, env: pytest.MonkeyPatch) -> None:
    book, seen = tmp_path / "a b.pdf", tmp_path / "seen"
    book.write_bytes(b"%PDF")
    program = tmp_path / "bin" / "okular"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}.new && mv {seen}.new {seen}\n')
    program.chmod(0o755)
    env.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    env.setattr(viewer, "VIEWERS", {"okular": viewer.VIEWERS["okular"]})
    assert viewer.show(str(book), 22, "q") is None  # no screen
    env.setenv("DISPLAY", ":0")
    env.setattr(viewer.sys, "platform", "linux")
    assert viewer.show(str(book), 22, "q") == "okular"
    while not seen.exists():
        time.sleep(0.01)
    assert seen.read_text().splitlines() == ["--page", "22", str(book)]
    opened = list[str]()
    env.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    env.setenv("PATH", "/nowhere")
    assert viewer.show(str(book), 3, "q") == "the browser"
    assert opened == [viewer.link(str(book), 3)]
