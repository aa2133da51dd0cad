"""``ask --over`` and ``summarise``: answers of parts with their places, from one reading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Call, Validate

CHAPTERS = "".join(f"# Chapter {n}\n\n" + f"House {n} is blue and Anna lives in it. " * 8 + "\n\n" for n in (1, 2, 3))
POLICY = ("--policy", "keydiff(budget=96)", "--chunk-size", "64", "-n", "9")


@pytest.fixture(autouse=True)
def book(folder: Path) -> None:
    (folder / "book.md").write_text(CHAPTERS)


def test_parts_have_their_places_and_one_reading_serves_all(
    call: Call, wide_model: Path, validate: Validate, shelf: Path
) -> None:
    args = ("-m", wide_model, *POLICY, "--json", "book.md")
    outcome = call("ask", *args, "Who?", "--over", "chapters")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    validate(found)
    assert [part["section"] for part in found["parts"]] == ["Chapter 1", "Chapter 2", "Chapter 3"]
    text = call("extract", "book.md").out
    for part in found["parts"]:
        assert part["title"] in text[part["char_start"] : part["char_end"]]
        assert part["finish_reason"] in ("stop", "length")
    assert len(list(shelf.glob("*.kv"))) == 1
    assert call("ask", *args, "Where?", "--over", "tokens:200").json["kv"]["cache"] == "hit"


def test_a_summary_is_that_of_the_parts(call: Call, wide_model: Path, validate: Validate) -> None:
    outcome = call("summarise", "-m", wide_model, *POLICY[:4], "--json", "book.md", "--words", "10")
    assert outcome.code == 0, outcome.err
    validate(outcome.json)
    assert len(outcome.json["parts"]) == 3
    each = call("summarise", "-m", wide_model, *POLICY[:4], "book.md", "--words", "10", "--by", "chapter")
    assert [line for line in each.out.splitlines() if line.startswith("## ")] == [f"## Chapter {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("ask", "book.md", "Who?", "--over", "words"), 2),
        (("ask", "Who?", "--over", "chapters"), 2),
        (("ask", "book.md", "Who?", "--over", "pages:2"), 3),
        (("ask", "book.md", "Who?", "--over", "chapters", "--each"), 2),
        (("ask", "book.md", "Who?", "--over", "chapters", "--reread", "2"), 2),
        (("summarise",), 2),
        (("summarise", "book.md", "--by", "words"), 2),
        (("summarise", "missing.md"), 3),
    ],
)
def test_bad_input_is_one_line(call: Call, tiny_model: Path, args: tuple[str, ...], code: int) -> None:
    outcome = call(args[0], "-m", tiny_model, *args[1:])
    assert outcome.code == code
    assert outcome.out == ""
    assert len([line for line in outcome.err.splitlines() if "error:" in line]) == 1
