"""Markdown on a terminal: what is shown, however the text arrives and whatever size the window has."""

from __future__ import annotations

import io
import random
import re
import sys
from itertools import pairwise

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcli.cli.views.markdown import MarkdownText, TerminalAnswer

ANSWER = """# One **two**

Some *words* and `code`, a snake_case_name, 2 * 3, **bold that is
not closed and a long line that goes on until the window ends and on.

- first item with enough words to need a second line in a narrow window
- second
  1. nested
```python
x = "**no**"

y = 2
```
four ```inline``` five
> quoted words

| a | b |
|---|---|
| 1 | 2 |

***
1984 was. \\*five\\*"""

PLAIN = re.compile(r"\x1b\[[0-9;]*m")


def shown(text: str, cuts: list[int], width: int = 40) -> str:
    markdown = MarkdownText()
    markdown.width = width
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    out = "".join(markdown.feed(text[a:b]) for a, b in pairwise(edges))
    return out + markdown.flush()


PIECES = st.sampled_from(
    [
        "*",
        "**",
        "_",
        "`",
        "```",
        "~~~",
        "#",
        "- ",
        "1. ",
        "|",
        ">",
        "\\",
        "\n",
        "\n\n",
        " ",
        "a",
        "word",
        "ü",
        "駅",
        ".",
    ]
)


@given(st.lists(PIECES, max_size=60).map("".join), st.lists(st.integers(0, 500), max_size=12), st.integers(2, 60))
def test_the_result_does_not_depend_on_how_the_text_arrives(text: str, cuts: list[int], width: int) -> None:
    assert shown(text, cuts, width) == shown(text, [], width)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_in_pieces(seed: int) -> None:
    dice = random.Random(seed)
    assert shown(ANSWER, [dice.randrange(999) for _ in range(80)]) == shown(ANSWER, [])


def test_what_is_shown() -> None:
    rows = PLAIN.sub("", shown(ANSWER, [])).split("\n")
    assert rows[0] == "One two"
    assert rows[2] == "Some words and code, a snake_case_name,"
    assert "• first item with enough words to need a" in rows
    assert rows[rows.index("• first item with enough words to need a") + 1].startswith("  second line")
    assert "  1. nested" in rows
    assert 'x = "**no**"' in rows
    assert "four inline five" in rows
    assert any(re.fullmatch(r"\s*a\s+b", row) for row in rows)
    assert rows[-2] == "1984 was. *five*"
    assert all(len(row) <= 40 and row == row.rstrip(" ") for row in rows)


def test_no_letter_of_words_is_lost() -> None:
    """Marks of emphasis that are not closed are kept."""
    text = "a ** b * c `d _e __f \\ g ``h"
    assert PLAIN.sub("", shown(text, [])) == text + "\n"


def test_words_are_shown_before_their_paragraph_ends() -> None:
    markdown = MarkdownText()
    assert (
        PLAIN.sub("", markdown.feed("A **paragraph** that is not finished ye")).strip()
        == "A paragraph that is not finished"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_window_that_changes_its_size_tears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves the cursor, so every line is on the screen once."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    width = 60
    monkeypatch.setattr("kvcli.cli.views.markdown.columns", lambda _: width)
    paper = TerminalAnswer()
    for n in range(300):
        width = 30 + n % 50
        paper.write(f"Line number {n} of a long answer{'.' * (n % 90)}{' ' if n % 3 else chr(10)}")
    paper.end()
    sent = screen.getvalue()
    assert "\x1b" not in sent
    assert [int(n) for n in re.findall(r"number\s(\d+)\sof", sent)] == list(range(300))


def test_thoughts_are_dim_and_above_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    paper = TerminalAnswer()
    for text, thought in (("hm", True), (" so", True), ("Pip", False), (".\n", False)):
        paper.write(text, reasoning=thought)
    paper.end()
    view = pyte.Screen(80, 5)
    pyte.Stream(view).feed(screen.getvalue().replace("\n", "\r\n"))
    assert [row.rstrip() for row in view.display][:3] == ["hm so", "", "Pip."]
