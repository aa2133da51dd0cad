"""The row that shows that something is going on."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pyte
import pytest

from kvcli.cli import commands
from kvcli.cli.views import activity, terminal
from kvcli.cli.views import quotes as quote_lines
from kvcli.cli.views.activity import Activity
from kvcli.cli.views.progress import ProgressDisplay
from kvcli.documents import Document
from kvcli.events import Prefill
from kvcli.retrieval.quotes import QuoteSearch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_on(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def shown(written: str, columns: int = 80, rows: int = 24) -> list[str]:
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(written.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display if line.strip()]


def test_the_row_is_there_at_once_and_goes_when_something_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal_on(monkeypatch)
    activity.row.start("loading a model")
    assert shown(stderr.getvalue())[0].startswith("loading a model .")
    terminal.note("model", "here it is")
    assert shown(stderr.getvalue()) == ["model    here it is"]


def test_what_moves_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal_on(monkeypatch)
    row = Activity()
    row.start("x" * 200)
    for _ in range(3):
        row._draw()
    row.clear()
    assert shown(stderr.getvalue()) == []


@pytest.mark.parametrize("columns", [31, 50, 79, 120])
@pytest.mark.parametrize("wraps", [True, False])
def test_nothing_is_left_after_a_window_was_resized(monkeypatch: pytest.MonkeyPatch, columns: int, wraps: bool) -> None:
    """In terminals that wrap lines again, and in those that cut them off; what was printed before stays."""
    stderr, width = terminal_on(monkeypatch), 80
    monkeypatch.setattr(activity, "size", lambda: (width, 24))
    for name in ("XTERM_VERSION", "STY"):
        monkeypatch.delenv(name, raising=False)
    if not wraps:
        monkeypatch.setenv("XTERM_VERSION", "XTerm(390)")
    document = Document.of_text("The ferry leaves at noon from the \u6e2f pier, which is east of the old tower. " * 9)
    stderr.write("printed before\n")
    row = Activity()
    monkeypatch.setattr(quote_lines, "row", row)
    monkeypatch.setattr(activity, "PATIENCE", 0)
    quote_lines.keep_above(document, QuoteSearch(document, "When does the ferry leave?").quotes(), "ferry")
    row.start("writing the answer to a long question about the ferry, which takes its time")
    row._draw()
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(stderr.getvalue().replace("\n", "\r\n"))
    drawn = [line.rstrip() for line in screen.display[: screen.cursor.y + 1]]
    assert len(drawn) > 4
    width, before = columns, len(stderr.getvalue())
    for again in (row._draw, row.clear):
        again()
    resized = "\n".join(drawn if wraps else [line[: columns - 1] for line in drawn])
    assert shown(resized + stderr.getvalue()[before:], columns) == ["printed before"]


def test_a_large_file_that_is_read_is_shown_beside_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal_on(monkeypatch)
    row = Activity()
    row.start("loading m")
    for done, shows in ((1 << 29, "loading m · reads w.safetensors once 50 % ."), (1 << 30, "loading m .")):
        row.share("w.safetensors", done, 1 << 30)
        row._draw()
        assert shown(stderr.getvalue())[0].startswith(shows)
    row.share("small", 1, 1 << 20)
    row._draw()
    assert "small" not in stderr.getvalue()
    row.clear()


def test_a_row_is_handed_over_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal_on(monkeypatch)
    one, two = Activity(), Activity()
    one.start("starting")
    assert one.hand_over()
    one.clear()
    assert shown(stderr.getvalue())[0].startswith("starting .")
    two.take_over()
    two.clear()
    assert shown(stderr.getvalue()) == []


def test_nothing_is_written_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    row = Activity()
    row.start("loading")
    row.clear()
    assert stream.getvalue() == ""
    assert not row.hand_over()


def test_json_takes_the_place_of_the_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stderr = terminal_on(monkeypatch)
    activity.row.start("starting")
    terminal.print_json(answer=1)
    assert shown(stderr.getvalue()) == []
    assert '"answer": 1' in capsys.readouterr().out


TEXT = "The ferry leaves at noon from the east pier of the old harbour, and it is full on each Sunday in summer. " * 3
QUESTION = "When does the ferry leave?"


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 24), (36, 10), (120, 3)])
@pytest.mark.parametrize("interrupted", [False, True])
def test_quotes_stand_above_the_row_and_the_bar_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: int, interrupted: bool
) -> None:
    stderr = terminal_on(monkeypatch)
    for module in ("activity", "progress"):
        monkeypatch.setattr(f"kvcli.cli.views.{module}.size", lambda: (columns, rows))
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    monkeypatch.setattr(activity, "PATIENCE", 0.0)
    document = Document.of_text("\n\n".join([TEXT, "A ferry leaves.", "The crew leaves the ferry."]))

    def screen() -> list[str]:
        return shown(stderr.getvalue(), columns, rows)

    activity.row.start("loading")
    quote_lines.keep_above(document, QuoteSearch(document, QUESTION).quotes(), QUESTION)
    try:
        activity.row._draw()
        *above, row = screen()
        assert (len(above) > 1) == (rows > 5), "a quote needs room"
        assert not above or above[0] == "Likeliest sentences so far:"
        assert not above or above[1].startswith("line 1 “The ferry")
        assert len(above) <= rows // 2
        assert all(len(line) < columns for line in above)
        assert row.startswith("loading")
        written = len(stderr.getvalue())
        activity.row._draw()
        assert "ferry" not in stderr.getvalue()[written:], "it is drawn once"
        with ProgressDisplay() as display:
            for done in (1, 2):
                display.drawn = 0.0
                display.see(Prefill(done, 3, 1, 0.5 * done))
                *under, bar = screen()
                assert under == above
                assert len(bar) < columns - 1
            if interrupted:
                stderr.write("^C")  # as the terminal does
        assert screen()[0].startswith("prefill  2 tokens")
        assert "ferry" not in "".join(screen())
        activity.row.start("writing the answer")
        assert screen()[:-1][-len(above) :] == above or not above
    finally:
        activity.row.keep_above(None)
    terminal.write(sys.stderr, "At noon.")
    assert screen()[-1] == "At noon."
    assert "Likeliest" not in "".join(screen())


def test_lines_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_on(monkeypatch)
    row = Activity()
    row.keep_above(lambda *_: ["one"])
    assert row.above() == [], "what takes less time does not flash"
    monkeypatch.setattr(activity, "PATIENCE", 0.0)
    assert row.above() == ["one"]
    monkeypatch.setattr(activity, "PATIENCE", time.monotonic() - row._given)
    row.keep_above(lambda *_: ["two"])
    assert row.above() == ["two"]


@pytest.mark.parametrize("args", [["plan", "a.txt"], ["ask", "a.txt", "Why?"], ["extract", "a.pdf"]])
def test_slow_commands_show_that_they_have_begun(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    stderr = terminal_on(monkeypatch)
    activity.announce(args)
    assert shown(stderr.getvalue())[0].startswith("starting kvcli .")
    activity.row.clear()


@pytest.mark.parametrize("args", [[], ["--help"], ["help"], ["recipes"], ["plan", "--help"], ["models", "ls"]])
def test_quick_commands_show_it_only_if_they_are_slow_today(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    stderr = terminal_on(monkeypatch)
    monkeypatch.setattr(activity, "TICK", 0.1)
    activity.announce(args)
    assert stderr.getvalue() == ""
    while not stderr.getvalue():
        time.sleep(0.01)
    assert shown(stderr.getvalue())[0].startswith("starting kvcli .")
    terminal.write(sys.stdout, "an answer")
    assert shown(stderr.getvalue()) == []


@pytest.mark.parametrize("args", [["extract", "-q", "a.pdf"], ["mcp"], ["--version"], ["--show-completion"]])
def test_quiet_commands_show_nothing(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    stderr = terminal_on(monkeypatch)
    monkeypatch.setattr(activity, "row", Activity())
    activity.announce(args)
    assert activity.row._thread is None
    assert stderr.getvalue() == ""


def test_quick_commands_are_commands() -> None:
    assert {path.stem for path in Path(commands.__file__).parent.glob("*.py")} > activity._QUICK
