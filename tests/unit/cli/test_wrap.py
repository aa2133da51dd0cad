"""Wrapped text is the text: no character is lost, no line is wider than the terminal, no word is cut that fits."""

from __future__ import annotations

import io
import os
import re
import sys
from itertools import cycle, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from kvcli.cli.views import terminal, wrap
from kvcli.cli.views.wrap import FALLBACK, WordWrap, columns, wrapped

TEXT = st.text(st.sampled_from("ab c,\n漢字é-"), max_size=200)
WIDTH = st.integers(4, 40)


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@given(TEXT, WIDTH, st.integers(0, 10))
@example("a" * 100, 7, 2)
def test_no_character_is_lost_and_no_line_is_too_wide(text: str, width: int, indent: int) -> None:
    made = wrapped(text, width, indent)
    assert re.sub(r"\s", "", made) == re.sub(r"\s", "", text)
    for line in made.split("\n"):
        if not re.match(r"\t| {4,}", line):
            assert cell_len(line) <= max(width, 2)


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=30), st.integers(10, 40))
def test_a_word_that_fits_is_not_cut(words: list[str], width: int) -> None:
    made = wrapped(" ".join(words), width)
    assert made.split() == words
    lines = made.split("\n")
    for line, following in pairwise(lines):
        assert len(line) + 1 + len(following.split()[0]) > width  # it would not have fitted


@given(TEXT, WIDTH, st.integers(0, 10), st.lists(st.integers(1, 9), min_size=1))
@example("aaaaaa字a字aa", 4, 0, [9])
@example("x aaaaaa", 4, 0, [6, 1])
@example("x aaa字aa", 4, 0, [3, 2, 1])
def test_pieces_give_what_the_whole_gives(text: str, width: int, indent: int, steps: list[int]) -> None:
    """However a text arrives, the same is on the screen at the end."""
    wrap, out, at = WordWrap(width, indent), "", 0
    for step in cycle(steps):
        out += wrap.feed(text[at : at + step])
        at += step
        if at >= len(text):
            break
    assert (out + wrap.flush()).split("\n") == wrapped(text, width, indent).split("\n")


def test_what_is_written_is_never_far_behind() -> None:
    wrap = WordWrap(40)
    assert wrap.feed("The lorry arr") == "The lorry"
    assert wrap.feed("ives at noon.\n") == " arrives at noon.\n"


def test_code_and_tables_are_left_alone() -> None:
    long = "x " * 40
    for text in (f"```\n{long}\n```\n", f"    {long}\n", f"| {long}|\n", f"\t{long}\n"):
        assert wrapped(text, 20) == text
    after = wrapped(f"```\n{long}\n```\n{long}", 20)
    assert max(map(len, after.split("\n")[3:])) <= 20


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=20), st.integers(10, 40))
def test_escape_sequences_have_no_width(words: list[str], width: int) -> None:
    bold = " ".join(f"\x1b[1m{word}\x1b[22m" for word in words)
    assert bare(wrapped(bold, width)) == wrapped(" ".join(words), width)


def test_a_stream_that_is_no_terminal_has_a_width() -> None:
    with open(os.devnull) as null:  # noqa: PTH123
        assert columns(null) == FALLBACK


@pytest.mark.parametrize("width", [40, 60, 79, 80, 120])
def test_no_row_of_a_table_is_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    monkeypatch.setattr(wrap, "columns", lambda _stream: width)
    rows = [("a1", "1,024", "word " * 10, "x" * 25), ("b22", "7", "short", "tail")]
    terminal.table(("id", "n", "text", "path"), rows, optional=["path"])
    terminal.facts([("label", "word " * 30), ("other", "short")])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.split().count("word") == 40
    assert ("tail" in shown.split()) == (width >= 120)


@given(st.lists(st.text("abc", min_size=1, max_size=40), min_size=1, max_size=10), st.integers(40, 120))
def test_a_table_of_any_columns_is_printed(cells: list[str], width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        patch.setattr(terminal, "is_terminal", lambda _stream: True)
        patch.setattr(wrap, "columns", lambda _stream: width)
        terminal.table([str(i) for i in range(len(cells))], [cells])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert max(map(len, shown.splitlines())) <= width
    assert sorted(c for c in shown if c in "abc") == sorted("".join(cells))
