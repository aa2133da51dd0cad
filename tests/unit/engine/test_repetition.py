"""What is kept of answers that repeat themselves."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvcli.engine.repetition import RepetitionGuard


def watched(pieces: list[str], *, truncated: bool = False) -> tuple[str, RepetitionGuard]:
    """What is printed of an answer in pieces, each of which is one token."""
    guard, printed = RepetitionGuard(), ""
    for piece in pieces:
        printed += guard.push(hash(piece), piece)
        if guard.repeats:
            break
    return printed + guard.close(truncated=truncated), guard


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
    " ".join(map(str, range(300))),
    "Versions: " + " ".join(f"{n}.{n}" for n in range(40)),
    "Rows to fill in:\n" + "\n".join(f"{n}." for n in range(1, 16)) + "\nEnd",
    "```\n" + "\n".join(f"{n}." for n in range(1, 40)) + "\n```\n",
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


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{FIRST} {FIRST[:40]}", FIRST),
        (f"{FIRST} It {FIRST[4:40]}", None),
        ("9" + " .1" * 20, "9 .1"),
        (f"Yes. {'It is so and so of it. ' * 4}", "Yes. It is so and so of it."),
    ],
)
def test_a_truncated_answer_does_not_end_in_what_was_there(text: str, kept: str | None) -> None:
    printed, guard = watched(words(text), truncated=True)
    assert printed == guard.text == (kept or text)


def test_an_answer_ends_before_it_repeats_the_prompt() -> None:
    rule = "Answer with the words of the text."
    for opening, kept in (("It is red.\n\n", "It is red."), ("", f"{rule} Question: Why?")):
        guard = RepetitionGuard([rule])
        printed = "".join(guard.push(hash(w), w) for w in words(f"{opening}{rule} Question: Why?") if not guard.repeats)
        assert (printed + guard.close()).rstrip() == guard.text.rstrip() == kept


PIECES = ["the ", "boat ", "left ", "at six. ", "\n", FIRST + " ", "It left at six. ", "1. ", "```\n", "。", ".1"]
STREAMS = st.builds(
    lambda opening, loop, rounds, rest: [*opening, *loop * rounds, *rest],
    st.lists(st.sampled_from(PIECES), max_size=40),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30),
    st.integers(0, 60),
    st.lists(st.sampled_from(PIECES), max_size=20),
)


@given(STREAMS, st.booleans())
def test_what_is_printed_is_what_is_kept(pieces: list[str], truncated: bool) -> None:
    printed, guard = watched(pieces, truncated=truncated)
    whole = "".join(pieces)
    assert printed == guard.text
    assert whole.startswith(printed)
    assert guard.repeats or printed == whole


@given(STREAMS, st.booleans())
def test_no_sentence_is_kept_twice(pieces: list[str], truncated: bool) -> None:
    text, _ = watched(pieces, truncated=truncated)
    assume("`" not in text and "~" not in text)  # code may repeat lines
    sentences = [" ".join(re.findall(r"\w+", s)).casefold() for s in re.split(r"(?<=[.!?…])\s|\n|(?<=[。！？])", text)]
    sentences = [re.sub(r"^[\W\d_]+", "", sentence) for sentence in sentences]
    long = [sentence for sentence in sentences if len(sentence) >= RepetitionGuard.SENTENCE]
    assert len(long) == len(set(long))


@given(STREAMS, st.booleans())
def test_no_loop_of_tokens_is_kept(pieces: list[str], truncated: bool) -> None:
    """What is left has no three rounds of 64 tokens and more, and if it was truncated, does not end in two of 16."""
    assume(all(pieces))
    printed, guard = watched(pieces, truncated=truncated)
    kept, size = list[str](), 0
    for piece in pieces:
        if size + len(piece) > len(printed):
            break
        kept.append(piece)
        size += len(piece)
    for period in range(1, RepetitionGuard.PERIOD + 1):
        run = longest = 0
        for i in range(period, len(kept)):
            run = run + 1 if kept[i] == kept[i - period] else 0
            longest = max(longest, run)
        assert longest < max(RepetitionGuard.LOOP, 2 * period)
        if truncated and not guard.repeats:
            assert run < max(RepetitionGuard.TAIL, period)


@given(
    st.sampled_from(["", "Yes.", "Steps: 1. Do it.\n"]),
    st.integers(0, 9000),
    st.integers(1, 3),
    st.sampled_from([" ", "\n", "  \n"]),
    st.sampled_from(".)"),
)
def test_an_answer_that_only_counts_ends(begun: str, first: int, step: int, gap: str, mark: str) -> None:
    numbers = [f"{gap}{n}{mark}" for n in range(first, first + 40 * step, step)]
    printed, guard = watched([begun, *numbers])
    assert guard.repeats
    assert printed.rstrip() == guard.text.rstrip() == (begun + numbers[0]).rstrip()
    assert not watched([begun, *numbers[:12], f"{gap}done"])[1].repeats, "it stopped counting by itself"


@given(st.lists(st.sampled_from(["a", "yes", "x = 3", "4 eggs", "–"]), min_size=1, max_size=60), st.sampled_from(".)"))
def test_a_list_with_items_is_no_counting(items: list[str], mark: str) -> None:
    pieces = words("\n".join(f"{n}{mark} {item} {n}" for n, item in enumerate(items, 1)))
    printed, guard = watched(pieces)
    assert (printed, guard.repeats) == ("".join(pieces), False)
