"""Where answers go, and what names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcli.cli.chat.loop import COMMAND, LEAVE
from kvcli.cli.output import AnswerWriter
from kvcli.cli.views.page import Section, as_html, as_markdown
from kvcli.errors import UsageError


def answers(writer: AnswerWriter, count: int = 2) -> None:
    for n in range(count):
        writer.heading = f"Question {n}?"
        writer.write(f"Answer {n}. [1]")
        writer.end(f"Answer {n}. [1]", {"question": f"Question {n}?"}, notes=("[1] p. 2 \x1b[1mword\x1b[22m",))
    writer.close()


def test_each_of_several_answers_in_a_pipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    answers(AnswerWriter())
    out = capsys.readouterr().out
    assert out.startswith("## Question 0?\n\nAnswer 0. [1]\n")
    assert "\n\n## Question 1?\n\nAnswer 1. [1]\n" in out
    answers(AnswerWriter(headings=False))
    assert "##" not in capsys.readouterr().out
    answers(AnswerWriter(as_json=True))
    assert [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()] == [
        "Question 0?",
        "Question 1?",
    ]


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_answers_are_exported_with_their_quotes(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"out.{suffix}"
    answers(AnswerWriter(as_json=True, export=str(path)))
    capsys.readouterr()
    text = path.read_text()
    assert all(part in text for part in ("Question 0?", "Answer 1. [1]", "[1] p. 2 word"))
    assert "\x1b" not in text


def test_a_run_that_fails_exports_nothing(tmp_path: Path) -> None:
    AnswerWriter(export=str(tmp_path / "out.md")).close()
    assert not (tmp_path / "out.md").exists()


@pytest.mark.parametrize("name", ["out.pdf", "out", "nowhere/out.md"])
def test_an_export_that_cannot_be_is_refused_first(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        AnswerWriter(export=str(tmp_path / name))


def test_a_page_runs_nothing_that_an_answer_says() -> None:
    bad = "<script>alert(1)</script> [x](javascript:alert(2)) ![y](https://example.com/z.png) **bold**"
    page = as_html(bad, [Section(bad, bad, (bad,))])
    assert "<script" not in page
    assert "href" not in page
    assert "<img" not in page
    assert "<strong>bold</strong>" in page
    assert as_markdown("Title", [Section("a\nb", "c", ("d",))]) == "# Title\n\n> a\n> b\n\nc\n\n- d\n"


def test_words_that_leave_and_ask_for_help() -> None:
    assert {"exit", "quit", ":q"} <= set(LEAVE)
    assert COMMAND.match("/?")
    assert COMMAND.match("/bye")
    assert not COMMAND.match("/etc/passwd is a file")
