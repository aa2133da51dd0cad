"""One splitter for everything that needs sentences: exact characters, whole units, linear time."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcli.documents.sentences import LONGEST, split_sentences


def units(text: str) -> list[str]:
    return [text[s.start : s.end] for s in split_sentences(text)]


@settings(deadline=None)
@given(st.text(alphabet='ab AB.!?。\n\t|-*"1)#`{=', max_size=400) | st.text(max_size=200))
def test_units_are_the_text_in_order_and_nothing_but_white_space_and_rules_is_left_out(text: str) -> None:
    found = split_sentences(text)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(0 < s.end - s.start <= LONGEST and text[s.start : s.end] == text[s.start : s.end].strip() for s in found)
    covered = {i for s in found for i in range(s.start, s.end)}
    assert not any(text[i].isalnum() for i in range(len(text)) if i not in covered)


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Wren met Mrs. Hall at No. 7 on the quay.",
        "J. R. Hale sailed in 1911.",
        "It cost 3.50 crowns, i.e. a week's bread.",
        "Der Zug fährt am 3. Oktober bzw. am Montag.",
        "Родился в 1870 г. Москва тогда была другой.",
        "See example.org/a.b or os.path and more.",
        '"Who is there?" he asked.',
        "The cat … sat down.",
        "Wrapped lines of one sentence are one sentence, as long\nas the line above was full up to the margin of it.",
    ],
)
def test_a_full_stop_within_a_sentence_ends_nothing(text: str) -> None:
    assert units(text) == [text]


@pytest.mark.parametrize(
    "parts",
    [
        ["It rained.", "Then it stopped!", "Did it?", "Yes."],
        ['He said "Go."', "She went."],
        ["It was so in 1911.", "Nobody knew."],
        ["It ended here.[3]", "Another began."],
        ["Was it he?”", "“It was.”"],
    ],
)
def test_sentences_end_at_full_stops(parts: list[str]) -> None:
    assert units(" ".join(parts)) == parts
    assert units("\n".join(parts)) == parts


def test_no_space_after_a_full_stop() -> None:
    assert units("The ship went down.Nobody was saved by it.") == ["The ship went down.", "Nobody was saved by it."]
    assert units("今日は晴れ。明日は雨?そうです！") == ["今日は晴れ。", "明日は雨?", "そうです！"]


def test_items_options_rows_headings_and_code_are_units() -> None:
    parts = [
        ("heading", "# Harbour rules"),
        ("sentence", "These hold for all."),
        ("item", "* boats are tied\n  at night"),
        ("item", "2. Lamps burn. All night."),
        ("item", "-n, --number N   how many\n                 boats there are"),
        ("row", "| pier | boats |"),
        ("row", "| east | 12 |"),
        ("heading", "Fees"),
        ("sentence", "They are low."),
        ("code", "```"),
        ("code", "pay(12)"),
        ("code", "```"),
    ]
    text = "\n".join(("\n" if kind == "heading" else "") + part + "\n" * (kind == "heading") for kind, part in parts)
    assert [(s.kind, text[s.start : s.end]) for s in split_sentences(text)] == parts


def test_short_lines_are_units_and_wrapped_ones_are_not() -> None:
    assert units("Name: Wren\nPort: Cork\nShip: Hale") == ["Name: Wren", "Port: Cork", "Ship: Hale"]
    assert units("install the lamp\nremove the lamp\nlist all of the lamps that there are in town") == [
        "install the lamp",
        "remove the lamp",
        "list all of the lamps that there are in town",
    ]


def test_no_full_stop_for_ten_megabytes() -> None:
    for unit in ("word ", "x"):
        text = unit * (10_000_000 // len(unit))
        found = split_sentences(text)
        assert all(s.end - s.start <= LONGEST for s in found)
        assert sum(s.end - s.start for s in found) + text.count(" ") >= len(text)
