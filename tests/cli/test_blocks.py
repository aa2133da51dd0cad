"""What is put on the terminal of an answer, piece by piece."""

from __future__ import annotations

import io
import random
import re
import sys

import pytest

from kvcli.cli.talk.blocks import Blocks, Paper, Thoughts

ANSWER = "# One\n\ntwo\nthree\n\n```python\nx = 1\n\ny = 2\n```\nfour\n~~~\n```\n\n~~~\n\n- a\n- b\n\n\nfive"
PARTS = ["# One", "two\nthree", "```python\nx = 1\n\ny = 2\n```", "four", "~~~\n```\n\n~~~", "- a\n- b", "five"]


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_the_same_however_the_text_comes(seed: int) -> None:
    dice, blocks, found, at = random.Random(seed), Blocks(), list[str](), 0
    while at < len(ANSWER):
        step = dice.randint(1, 7)
        found += blocks.push(ANSWER[at : at + step])
        at += step
    assert found + blocks.flush() == PARTS


def test_a_fence_that_is_never_closed_is_printed_at_the_end() -> None:
    blocks = Blocks()
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
    paper = Paper()
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


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_thoughts_are_hidden_however_they_come(size: int) -> None:
    text = "<think>\nhm < think\n</think>\n\nIt is <b>Pip</b>."
    for hide, shown in ((True, "It is <b>Pip</b>."), (False, text)):
        thoughts = Thoughts(hide=hide)
        found = "".join(thoughts.push(text[i : i + size]) for i in range(0, len(text), size)) + thoughts.flush()
        assert found.lstrip("\n") == shown
