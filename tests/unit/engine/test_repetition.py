"""What is kept of answers that repeat themselves."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcli.engine.repetition import RepetitionGuard


def watched(pieces: list[str]) -> tuple[str, RepetitionGuard]:
    """What is printed of an answer in pieces, each word of which is one token."""
    guard, printed = RepetitionGuard(), ""
    for piece in pieces:
        printed += guard.push(hash(piece), piece)
        if guard.repeats:
            break
    return printed + guard.close(), guard


def words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


FIRST = "The old mill by the river was closed in the spring of that year."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{FIRST} {FIRST}", FIRST),
        (f"{FIRST} It burned. {FIRST} It is", f"{FIRST} It burned."),
        (f"1. {FIRST}\n2. {FIRST}\n3. {FIRST}", f"1. {FIRST}"),
        (f"- {FIRST}\n\n- {FIRST.upper()}\n", f"- {FIRST}"),
        ("古い水車小屋はその年の春に川のそばで閉じられ、村の人は皆とても悲しく思い夏まで泣いていたという。" * 2, None),
    ],
)
def test_a_sentence_comes_once(text: str, kept: str | None) -> None:
    for pieces in (words(text), list(text)):
        printed, guard = watched(pieces)
        assert printed.rstrip() == guard.text.rstrip() == (kept or text[: len(text) // 2])
        assert guard.repeats


UNREPEATED = [
    f"{FIRST} The new mill by the river was closed in the spring of that year.",
    "- yes\n- no\n- yes\n- no\n- yes\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 2 |\n",
    f"```\nprint('{FIRST}')\nprint('{FIRST}')\n```\n",
    "No. No. No! The boat, Mr. Berg said, leaves at 3.5 past six.",
    f"{FIRST} {FIRST[:40]}",
    "2, 4, 8, 16, 2, 4, 8, 16",
]


@pytest.mark.parametrize("text", UNREPEATED)
def test_an_answer_without_repetition_is_unchanged(text: str) -> None:
    for pieces in (words(text), list(text)):
        printed, guard = watched(pieces)
        assert (printed, guard.text, guard.repeats) == (text, text, False)


@pytest.mark.parametrize("period", [1, 2, 7, 40, 200, 256])
def test_a_loop_of_tokens_ends_and_its_first_round_is_kept(period: int) -> None:
    loop = [f"{n} " for n in random.Random(period).sample(range(1000), period)]
    opening = [f"a{n} " for n in range(50)]
    printed, guard = watched([*opening, *loop * 400])
    assert guard.repeats
    kept = "".join([*opening, *loop])
    assert printed == guard.text
    assert len(kept.rstrip()) <= len(printed.rstrip()) <= len(kept) + 3 * 5


PIECES = ["the ", "boat ", "left ", "at six. ", "\n", FIRST + " ", "1. ", "```\n"]


PIECES = ["the ", "boat ", "left ", "at six. ", "\n", FIRST + " ", "1. ", "```\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=80))
def test_what_is_printed_is_what_is_kept(pieces: list[str]) -> None:
    printed, guard = watched(pieces)
    whole = "".join(pieces)
    assert printed == guard.text
    assert whole.startswith(printed)
    assert guard.repeats or printed == whole
