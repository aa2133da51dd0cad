"""``ask --cite``: what is printed below an answer, what JSON has of it, and how a run without a quote ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcli.cli.commands.ask import Ask
from kvcli.cli.help import with_values
from kvcli.cli.views import citations
from kvcli.errors import UsageError
from kvcli.events import Answer, Token
from tests.e2e.conftest import Call, Validate

FACT = "The harbour master of Kokovoko owns a green parrot."
TEXT = "Queequeg was a native of an island.\n" * 30 + FACT + "\n" + "It rained all day.\n" * 60
QUOTING = "A parrot: “The harbour master of Kokovoko owns a green parrot.”"
REPAIRED = "“The harbour master of Kokovoko owns a red parrot.”"
INVENTED = "He owns “a large white elephant”, they say."


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model answers, one after the other, whatever it is asked."""
    answers: list[str] = []

    def ask(_model: Any, _tail: Any, ids: list[int], **_options: Any) -> Iterator[Token | Answer]:
        text = answers.pop(0)
        for i, piece in enumerate(text):
            yield Token(i, piece)
        yield Answer(text, "stop", len(ids), len(text), 0.1, 0.1)

    monkeypatch.setattr("kvcli.pipeline.pipeline.generate", ask)
    return answers


def test_a_verified_quote_stands_below_the_answer(call: Call, tiny_model: Path, book: Path, saying: list[str]) -> None:
    for how in ([], ["-S"]):
        saying += [QUOTING + "\n\n"]
        outcome = call("ask", "-m", tiny_model, "--cite", *how, book, "What?")
        assert outcome.code == 0, outcome.err
        assert outcome.out == f'{QUOTING} [1]\n[1] line 31 "{FACT}"  found in text\n'


def test_what_is_not_verified_is_no_quote(call: Call, tiny_model: Path, book: Path, saying: list[str]) -> None:
    saying += [INVENTED, REPAIRED]
    outcome = call("ask", "-m", tiny_model, "--cite", "--no-headings", book, "-e", "What?", "-e", "Which?")
    invented, repaired = outcome.out.split("\n\n")
    answer, unverified, *likely = invented.splitlines()
    assert answer == INVENTED
    assert unverified == "[1] not in the text: a large white elephant"
    assert '"' not in unverified
    assert all(line.startswith("likely source") and "line" in line for line in likely)
    answer, citation, *likely = repaired.splitlines()
    assert answer == REPAIRED + " [1]"
    assert citation == f'[1] line 31 "{FACT[:-1]}"  nearly in text, 95 % alike'
    assert all(line.startswith("likely source") for line in likely)


def test_likely_sources_share_words_and_without_any_it_is_attention(
    call: Call, tiny_model: Path, folder: Path, saying: list[str]
) -> None:
    place, parts = 4, [f"Chapter {c}. " + f"It rained {c}. " * 99 + "\n" for c in "abcdefg"]
    parts[place] = FACT + parts[place]
    (folder / "long.txt").write_text("".join(parts))
    saying += ["Green is what his bird was, the parrot.", "Zzz.", "Zzz."]
    outcome = call("ask", "-m", tiny_model, "--json", "long.txt", "-e", "Which pet?", "-e", "Why?")
    words, none = (json.loads(line)["likely_sources"] for line in outcome.out.splitlines())
    assert words[0]["char_start"] <= len("".join(parts[:place])) < words[0]["char_end"]
    assert words[0]["words"] > 1
    for source in words + none:
        assert source["score"] == pytest.approx(source["lift"] * source["words"], rel=1e-3, abs=1e-3)
    assert none
    assert all(source["words"] == 1 for source in none)


def test_the_answer_alone_where_stdout_is_no_terminal(
    call: Call, tiny_model: Path, book: Path, folder: Path, saying: list[str]
) -> None:
    saying += [QUOTING] * 4
    args = ["ask", "-m", tiny_model, book, "What?"]
    assert call(*args).out == call(*args, "--no-cite").out == QUOTING + "\n"
    assert call(*args, "-o", folder / "plain.txt").code == 0
    assert (folder / "plain.txt").read_text() == QUOTING + "\n"
    assert call(*args, "--cite", "-o", folder / "cited.txt").out == ""
    assert "found in text" in (folder / "cited.txt").read_text()


def test_json_has_places_in_text_and_answer(
    call: Call, tiny_model: Path, book: Path, saying: list[str], validate: Validate
) -> None:
    saying += [QUOTING, INVENTED, QUOTING]
    outcome = call("ask", "-m", tiny_model, "--json", book, "-e", "What?", "-e", "Which?")
    quoting, invented = map(json.loads, outcome.out.splitlines())
    for answer in (quoting, invented):
        validate(answer)
        for source in answer["likely_sources"]:
            assert source["score"] > 1
            assert 0 <= source["char_start"] < source["char_end"] <= len(TEXT)
    (found,) = quoting["citations"]
    assert TEXT[found["char_start"] : found["char_end"]] == found["quote"] == FACT
    assert QUOTING[found["answer_start"] : found["answer_end"]] == FACT
    assert (found["n"], found["source"], found["page"], found["line"]) == (1, str(book), None, 31)
    assert (found["status"], found["places"], quoting["grounded"]) == ("verified", 1, True)
    (missed,) = invented["citations"]
    assert (missed["status"], missed["source"], missed["char_start"]) == ("unverified", None, None)
    assert invented["grounded"] is False
    off = call("ask", "-m", tiny_model, "--json", "--no-cite", book, "What?").json
    validate(off)
    assert (off["citations"], off["likely_sources"], off["grounded"]) == ([], [], None)


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        (QUOTING, ["--exit-status"], 0),
        (QUOTING, ["--exit-status", "--covered", "95"], 10),
        (FACT, ["--cite", "strict", "--exit-status"], 0),
        (INVENTED, ["--cite", "strict"], 0),
        (INVENTED, ["--exit-status"], 10),
        (REPAIRED, ["--cite", "strict", "--exit-status"], 10),
        ("", ["--exit-status", "--json"], 10),
    ],
)
def test_strict(
    call: Call, tiny_model: Path, book: Path, saying: list[str], text: str, options: list[str], code: int
) -> None:
    saying += [text]
    outcome = call("ask", "-m", tiny_model, *options, book, "What does the harbour master of Kokovoko own?")
    assert outcome.code == code, outcome.err
    assert ("not grounded" in outcome.err) == (text not in (QUOTING, FACT))


def test_an_answer_to_a_question_of_another_text_is_not_grounded(
    call: Call, tiny_model: Path, book: Path, saying: list[str]
) -> None:
    saying += [QUOTING, QUOTING]
    command = ("ask", "-m", tiny_model, "--exit-status", book, "Which regatta did Wren win?")
    assert call(*command).code == 10
    assert call(*command, "--quotes", "0").code == 0


def test_one_of_a_batch_is_not_grounded(call: Call, tiny_model: Path, book: Path, saying: list[str]) -> None:
    saying += [INVENTED, QUOTING]
    outcome = call("ask", "-m", tiny_model, "--exit-status", book, "-e", "What?", "-e", "Which?")
    assert outcome.code == 10
    assert outcome.err.count("not grounded") == 1


def test_without_a_document_nothing_is_grounded(
    call: Call, tiny_model: Path, saying: list[str], validate: Validate
) -> None:
    saying += [QUOTING, QUOTING]
    answer = call("ask", "-m", tiny_model, "--json", "What?").json
    validate(answer)
    assert (answer["citations"], answer["grounded"]) == ([], None)
    assert call("ask", "-m", tiny_model, "--exit-status", "What?").code == 10


def test_a_saved_reading_is_cited_too(
    call: Call, tiny_model: Path, book: Path, folder: Path, saying: list[str]
) -> None:
    saying += [QUOTING]
    assert call("prefill", "-m", tiny_model, book, "-o", folder / "book.kv").code == 0
    book.unlink()
    outcome = call("ask", "-m", tiny_model, "--cite", folder / "book.kv", "What?")
    assert f'[1] line 31 "{FACT}"  found in text' in outcome.out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--cite", "book.txt", "Why?"], ["--cite=on", "book.txt", "Why?"]),
        (["a", "Why?", "--cite"], ["a", "Why?", "--cite=on"]),
        (["--cite", "strict", "a", "Why?"], ["--cite=strict", "a", "Why?"]),
        (["--cite=off", "a", "--", "--cite", "on"], ["--cite=off", "a", "--", "--cite", "on"]),
    ],
)
def test_the_mode_may_be_left_out(args: list[str], expected: list[str]) -> None:
    assert with_values(args, Ask.optional) == expected


def test_the_default_is_on_for_terminals_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def mode(cite: str | None = None, **given: Any) -> str:
        return citations.mode(
            cite, **{"no_cite": False, "exit_status": False, "as_json": False, "output": None, **given}
        )

    assert (mode(), mode(as_json=True), mode(as_json=True, no_cite=True)) == ("off", "on", "off")
    monkeypatch.setattr(citations.terminal, "is_terminal", lambda _stream: True)
    assert (mode(), mode(output="a.txt"), mode(no_cite=True), mode("strict")) == ("on", "off", "off", "strict")
    for wrong in ({"cite": "maybe"}, {"cite": "strict", "no_cite": True}, {"exit_status": True, "no_cite": True}):
        with pytest.raises(UsageError) as caught:
            mode(**wrong)  # type: ignore[arg-type]
        assert caught.value.hint


def test_options_that_contradict_each_other_end_with_2(call: Call) -> None:
    outcome = call("ask", "--cite=maybe", "book.txt", "What?")
    assert (outcome.code, outcome.err.count("\n")) == (2, 2)
    assert "strict" in outcome.err
