"""``ask --query-aware`` and ``--reread``: what is read, shown and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Call, Outcome, Validate

FACT = "The harbour master of Kokovoko owns a green parrot. "
TEXT = "Queequeg was a native of an island far away to the West and South. " * 12 + FACT + "It rained all day. " * 40


def lines(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def test_focus_reads_for_each_question_alone(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    questions = ["What does the harbour master own?", "Which weather was it?"]
    args = ["ask", "-m", tiny_model, "-n", "8", "--json", "--policy", "keydiff(budget=600)", book]
    plain = call(*args, "-e", questions[0], "-e", questions[1])
    focused = call(*args, "--query-aware", "-e", questions[0], "-e", questions[1])
    assert focused.code == 0, focused.err
    assert focused.err.count("prefill") == 2
    assert plain.err.count("prefill") == 1
    answers = lines(focused)
    for answer, question in zip(answers, questions, strict=True):
        validate(answer)
        assert "sinks=" in answer["kv"]["recipe"]
        assert answer["question"] == question
    tokens = [answer["document"]["tokens"] for answer in answers]
    assert tokens[0] - tokens[1] == len(questions[0]) - len(questions[1])  # a byte is a token here
    again = call(*args, "--query-aware", questions[1])
    assert lines(again)[0]["answer"] == answers[1]["answer"]
    assert lines(again)[0]["kv"]["cache"] == "hit"


def test_the_second_look_shows_the_passage(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    question = "What does the harbour master own?"
    args = ["ask", "-m", tiny_model, "-n", "8", "--json", "--policy", "keydiff(budget=200)", book, question]
    outcome = call(*args, "--reread", "2")
    assert outcome.code == 0, outcome.err
    (answer,) = lines(outcome)
    validate(answer)
    assert "reread   2 passages" in outcome.err
    shown = [TEXT[p["char_start"] : p["char_end"]] for p in answer["looked_again"]]
    assert FACT.strip() in shown[-1]
    plain = lines(call(*args, "--reread", "0"))[0]
    assert plain["looked_again"] == []
    assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + sum(map(len, shown)) - 10


def test_what_forgets_looks_again_unasked(call: Call, tiny_model: Path, book: Path) -> None:
    args = [
        "ask",
        "-m",
        tiny_model,
        "-n",
        "8",
        "--json",
        "--chunk-size",
        "64",
        book,
        "What does the harbour master own?",
    ]
    named, unasked, raw, all_kept = (
        call(*args, "--policy", f"keydiff(budget={budget})", *more)
        for budget, more in [(200, ["--reread", "3"]), (200, []), (200, ["--raw"]), (4000, [])]
    )
    assert lines(unasked)[0]["looked_again"] == lines(named)[0]["looked_again"]
    assert lines(unasked)[0]["answer"] == lines(named)[0]["answer"]
    assert "reread   3 passages" in unasked.err
    for outcome in (raw, all_kept):
        assert lines(outcome)[0]["looked_again"] == []
        assert "reread " not in outcome.err


def test_without_a_document_there_is_nothing_to_look_at(call: Call, tiny_model: Path) -> None:
    outcome = call("ask", "-m", tiny_model, "-n", "8", "--json", "--query-aware", "--reread", "2", "Who?")
    assert outcome.code == 0, outcome.err
    assert lines(outcome)[0]["looked_again"] == []


def test_a_saved_reading_cannot_be_focused(call: Call, tiny_model: Path, book: Path, folder: Path) -> None:
    assert call("prefill", "-m", tiny_model, book, "-o", folder / "book.kv").code == 0
    outcome = call("ask", "-m", tiny_model, folder / "book.kv", "--query-aware", "Who?")
    assert outcome.code == 2
    assert "--query-aware" in outcome.err
    looked = call("ask", "-m", tiny_model, "-n", "8", folder / "book.kv", "--reread", "1", "Who?")
    assert looked.code == 0, looked.err
    assert "reread   1 passage," in looked.err
