"""What is put on the terminal of an answer, piece by piece."""

from __future__ import annotations

import io
import random
import re
import sys

import pytest

from kvcli.chat.reasoning import ReasoningSplitter, strip_reasoning
from kvcli.cli.chat.markdown_stream import MarkdownBlocks, PlainAnswer, TerminalAnswer

ANSWER = "# One\n\ntwo\nthree\n\n```python\nx = 1\n\ny = 2\n```\nfour\n~~~\n```\n\n~~~\n\n- a\n- b\n\n\nfive"
PARTS = ["# One", "two\nthree", "```python\nx = 1\n\ny = 2\n```", "four", "~~~\n```\n\n~~~", "- a\n- b", "five"]


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_the_same_however_the_text_comes(seed: int) -> None:
    dice, blocks, found, at = random.Random(seed), MarkdownBlocks(), list[str](), 0
    while at < len(ANSWER):
        step = dice.randint(1, 7)
        found += blocks.push(ANSWER[at : at + step])
        at += step
    assert found + blocks.flush() == PARTS


def test_a_fence_that_is_never_closed_is_printed_at_the_end() -> None:
    blocks = MarkdownBlocks()
    assert blocks.push("```\nx\n\ny\n") == []
    assert blocks.flush() == ["```\nx\n\ny"]
    assert blocks.flush() == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_three_hundred_lines_stand_on_the_screen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one row that is taken away is the last one; the cursor never goes up."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    paper = TerminalAnswer()
    lines = [f"Line number {n} of a long answer{'.' * (n % 90)}" for n in range(300)]
    for piece in re.split(r"(?<= )", "\n\n".join(lines)):
        paper.write(piece)
    paper.end()
    sent = screen.getvalue()
    assert not re.search(r"\x1b\[\d*[AFJHf]", sent), "nothing moves up and nothing is cleared but a row"
    left: list[str] = []
    for row in sent.split("\n"):
        left.append(re.sub(r"\x1b\[[0-9;]*m", "", row.split("\r\x1b[K")[-1]).rstrip())
        assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", part)) <= 60 for part in row.split("\r\x1b[K"))
    text = "".join(left)
    assert [int(n) for n in re.findall(r"Line number (\d+) of", " ".join(left))] == list(range(300))
    assert text.endswith("." * (299 % 90))


def test_a_list_goes_on_behind_a_blank_line() -> None:
    blocks = MarkdownBlocks()
    found = blocks.push("1. one\n\n   more of it\n\n2. two\n\nfour\n\n    code\n\n")
    assert found + blocks.flush() == ["1. one\n\n   more of it", "2. two", "four", "    code"]


def test_marks_stand_behind_the_last_word() -> None:
    for text, last in (("a\n\nb c", "b c [1]"), ("a\nb\n", "a\nb [1]"), ("```\nx", "```\nx")):
        blocks = MarkdownBlocks()
        blocks.push(text)
        blocks.mark("[1]")
        assert blocks.flush()[-1] == last


def test_no_row_ends_in_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded to the window's width it would become two rows in a narrower one."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    paper = TerminalAnswer()
    paper.write(
        "# Head\n\ntext\n\n- a\n- b\n\n```python\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n"
    )
    paper.end()
    rows = re.sub(r"\x1b\[[0-9;]*[mK]", "", screen.getvalue()).split("\n")
    assert any("x = 1" in row for row in rows)
    assert all(row == row.rstrip(" ") for row in rows)


TOLD = "It is <b>Pip</b>, not <think>."


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "thinking", "thought", "said"),
    [
        ("<think>\nhm < think\n</think>\n\n" + TOLD, False, "hm < think", TOLD),
        ("\nhm\n\nwell\n</think>\n\n" + TOLD, True, "hm\n\nwell", TOLD),
        ("<think>\n\n</think>\n\n" + TOLD, False, "", TOLD),
        (TOLD, False, "", TOLD),
        ("<think>never </thin", False, "never </thin", ""),
        ("<thin", False, "", "<thin"),
    ],
)
def test_thoughts_are_told_from_the_answer_however_they_come(
    size: int, text: str, thinking: bool, thought: str, said: str
) -> None:
    thoughts = ReasoningSplitter(thinking=thinking)
    pieces = [p for i in range(0, len(text), size) for p in thoughts.push(text[i : i + size])] + thoughts.flush()
    assert ("".join(t for t, of in pieces if of), "".join(t for t, of in pieces if not of)) == (thought, said)
    assert strip_reasoning(text, thinking=thinking) == said


def test_thoughts_keep_their_tags_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainAnswer()
    for text, thought in (("hm", True), (" so", True), ("Pip.\n", False)):
        lines.write(text, thought=thought)
    lines.end("[1]")
    assert capsys.readouterr().out == "<think>\nhm so\n</think>\n\nPip. [1]\n"
