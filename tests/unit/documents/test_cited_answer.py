"""Numbers in an answer: after the quote they belong to, and the same however the answer arrives."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvcli.documents import Document
from kvcli.documents.cited_answer import CitedAnswer, cite_answer
from kvcli.documents.quotes import QuoteIndex

SENTENCES = (
    "The harbour master of Kokovoko owns a green parrot.",
    "Nobody has ever heard that parrot speak.",
    "It rained all day in the harbour of Kokovoko.",
    "愿君多采撷此物最相思一二三四五六七八九十。",
)
INDEX = QuoteIndex(Document.of_text(f"{SENTENCES[0]} {SENTENCES[1]}\nA ship came.\n{SENTENCES[2]}\n{SENTENCES[3]}\n"))


def numbered(answer: str, question: str = "") -> str:
    return cite_answer(INDEX, answer, question)[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("He owns “a green parrot”, they say.", "He owns “a green parrot”, [1] they say."),
        (f"Well: he does. {SENTENCES[2]} So it is.", f"Well: he does. {SENTENCES[2]} [1] So it is."),
        (f"{SENTENCES[0]} Yes.\n\n- {SENTENCES[2]}\n", f"{SENTENCES[0]} [1] Yes.\n\n- {SENTENCES[2]} [2]"),
        (f"{SENTENCES[0]} {SENTENCES[1]} No.", f"{SENTENCES[0]} [1] {SENTENCES[1]} [1] No."),  # one passage
        (f"{SENTENCES[0]} Nobody has ever", f"{SENTENCES[0]} [1] Nobody has ever"),  # cut off
        (f"{SENTENCES[2]} And {SENTENCES[2]}", f"{SENTENCES[2]} [1] And {SENTENCES[2]}"),
        (f"**{SENTENCES[0]}**\nYes.", f"**{SENTENCES[0]}** [1]\nYes."),
        (f"{SENTENCES[0]} Yes.".replace("of ", "of\n"), f"{SENTENCES[0]} [1] Yes.".replace("of ", "of\n")),
        (f"{SENTENCES[0]} Yes.".replace("green ", "green\n"), f"{SENTENCES[0]} [1] Yes.".replace("green ", "green\n")),
        (f"```\nprint('{SENTENCES[0]}')\n```\nYes.", f"```\nprint('{SENTENCES[0]}')\n```\nYes. [1]"),
        (f"```\nprint('{SENTENCES[0]}')\n```", f"```\nprint('{SENTENCES[0]}')\n```\n[1]"),
        ('Say `f("a green parrot") + 1` now.', 'Say `f("a green parrot") + 1` now. [1]'),
        (f"> {SENTENCES[0]}\n\nYes.", f"> {SENTENCES[0]} [1]\n\nYes."),
        (f"诗云。{SENTENCES[3]}好。", f"诗云。{SENTENCES[3]} [1] 好。"),
        ("It is the “parrot”.",) * 2,  # one word, two places
        ("It is “heard”.", "It is “heard”. [1]"),
    ],
)
def test_a_number_follows_its_quote(answer: str, expected: str) -> None:
    assert numbered(answer) == expected


def test_a_word_of_the_question_is_no_quote() -> None:
    assert numbered("It is “heard”.", "Who has heard it?") == "It is “heard”."


pieces = st.sampled_from([*SENTENCES, *SENTENCES[2].split(), *"“”\"' \n>`…", "\n\n", "Yes.", "- ", "```", "c" * 50])


@given(st.lists(pieces, max_size=14).map("".join) | st.text(max_size=60), st.lists(st.integers(0, 999), max_size=9))
def test_numbers_do_not_depend_on_how_an_answer_arrives(answer: str, cuts: list[int]) -> None:
    """And without them the answer is what it was, but for white space beside them and at its end."""
    whole, found = cite_answer(INDEX, answer)
    edges = [0, *sorted(cut % (len(answer) + 1) for cut in cuts), len(answer)]
    growing = CitedAnswer(INDEX)
    text = "".join(growing.push(answer[a:b]) for a, b in pairwise(edges)) + growing.end()
    assert (text, growing.citations) == (whole, found)
    numbers = {int(n) for n in re.findall(r"\[(\d+)\]", text)}
    assume("[" not in answer)
    assert numbers == {n for n, c in enumerate(found, 1) if c.span is not None}
    if not numbers:
        assert text == answer
    bare = re.sub(r"\[\d+\]", "", text)
    assert "".join(bare.split()) == "".join(answer.split())


def test_a_word_without_end_is_shown_as_it_grows() -> None:
    growing, shown = CitedAnswer(INDEX), ""
    for n in range(1, 300):
        shown += growing.push("c")
        assert n - len(shown) < 40
    assert shown + growing.end() == "c" * 299


@given(st.lists(pieces, max_size=14).map("".join))
def test_quotes_are_in_order_and_share_no_character(answer: str) -> None:
    end = 0
    for citation in cite_answer(INDEX, answer)[1]:
        assert end <= citation.answer_start < citation.answer_end <= len(answer)
        end = citation.answer_end
