"""``kvcli ask``'s quotes: below a cited answer, alone with ``--quotes-only``, and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcli.events import Answer
from tests.e2e.conftest import Call, Validate

TEXT = "The ferry leaves at noon from the east pier.\n\nThe harbour master owns two parrots.\n\nIt rained all day.\n"


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def test_quotes_alone_need_no_model(call: Call, book: Path) -> None:
    outcome = call("ask", "-m", "there/is/none", "--quotes-only", book, "When does the ferry leave?")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == "line 1 “The ferry leaves at noon from the east pier.”"


def test_quotes_alone_as_json(call: Call, book: Path, validate: Validate) -> None:
    outcome = call("ask", "--quotes-only", "--json", book, "-e", "Who owns parrots?", "-e", "Which regatta?")
    owner, regatta = map(json.loads, outcome.out.splitlines())
    for record in (owner, regatta):
        validate(record)
    quote = owner["quotes"][0]
    assert TEXT[quote["char_start"] : quote["char_end"]] == quote["text"] == "The harbour master owns two parrots."
    assert (quote["line"], quote["page"], quote["supports"]) == (3, None, None)
    assert owner["answer_in_text"] > 0.1 > regatta["answer_in_text"]


def test_nothing_in_the_text(call: Call, book: Path) -> None:
    outcome = call("ask", "--quotes-only", "--exit-status", book, "Which regatta did Wren win?")
    assert outcome.code == 10
    assert "no sentence of the text seems to answer" in outcome.err
    assert call("ask", "--quotes-only", "--exit-status", book, "Who owns the parrots?").code == 0


@pytest.mark.parametrize("options", [["--quotes", "0"], []])
def test_quotes_alone_cannot_be_none_and_need_a_document(call: Call, book: Path, options: list[str]) -> None:
    files = [book] if options else []
    assert call("ask", "--quotes-only", *options, *files, "Who?").code == 2


def test_an_answer_comes_with_quotes(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    command = ("ask", "-m", tiny_model, "-n", "4", book, "When does the ferry leave?")
    outcome = call(*command, "--cite")
    assert outcome.code == 0, outcome.err
    assert "line 1 “The ferry leaves at noon from the east pier.”" in outcome.out.splitlines()
    assert "ferry" not in call(*command, "--cite", "--quotes", "0").out
    record = json.loads(call(*command, "--json").out)
    validate(record)
    assert record["quotes"][0]["supports"] in (True, False)
    assert "quotes" not in json.loads(call(*command, "--json", "--no-cite").out)


def test_one_quote_is_one_that_supports_the_answer(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest sentence by words is another one."""
    text = "The ferry leaves the pier of the ferry.\n\nA ferry leaves at noon.\n\nIt rained all day.\n"
    (folder / "ferry.txt").write_text(text)
    monkeypatch.setattr(
        "kvcli.pipeline.pipeline.generate", lambda *_, **__: iter([Answer("At noon.", "stop", 1, 1, 0.1, 0.1)])
    )
    command = (
        "ask",
        "-m",
        tiny_model,
        "--json",
        "--quotes",
        "1",
        folder / "ferry.txt",
        "When does the ferry leave the pier?",
    )
    (quote,) = call(*command).json["quotes"]
    assert (quote["text"], quote["supports"]) == ("A ferry leaves at noon.", True)


def test_an_answer_from_quotes_says_so(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    command = ("ask", "-m", tiny_model, "-n", "4", "--from-quotes", book)
    outcome = call(*command, "When does the ferry leave?")
    assert outcome.code == 0, outcome.err
    assert "and nothing else" in outcome.err
    record = call(*command, "--json", "When does the ferry leave?").json
    validate(record)
    assert record["from_quotes"] is True
    assert (record["document"]["tokens"], record["kv"]["kept"]) == (0, 0), "the document is not read"
    spans = [TEXT[p["char_start"] : p["char_end"]] for p in record["looked_again"]]
    assert spans[-1] == "The ferry leaves at noon from the east pier."
    usual = call(*command, "--json", "Which regatta did Wren win?").json
    assert usual["from_quotes"] is False
    assert usual["document"]["tokens"] > 0


@pytest.mark.parametrize(
    ("options", "question", "from_quotes"),
    [
        (("--budget", "128"), "When does the ferry leave?", False),
        ((), "When does the ferry leave?", True),
        (("--no-from-quotes",), "When does the ferry leave?", False),
        (("--policy", "keydiff(budget=64)"), "When does the ferry leave?", False),
        (("--reread", "0"), "When does the ferry leave?", False),
        (("-t", "summary"), "When does the ferry leave?", False),
        (("--choices", "noon,dusk"), "When does the ferry leave?", False),
        ((), "List all that the ferry and the harbour master do.", False),
        ((), "Which regatta did Wren win?", False),
    ],
)
def test_a_small_model_answers_about_a_long_text_from_quotes_unless_options_say_how(
    call: Call,
    tiny_model: Path,
    book: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    question: str,
    from_quotes: bool,
) -> None:
    monkeypatch.delenv("KVCLI_FROM_QUOTES")
    book.write_text("It rained all day, and nobody came.\n\n" * 900 + TEXT)
    record = call("ask", "-m", tiny_model, "-n", "4", *options, "--json", book, question).json
    assert record["from_quotes"] is from_quotes
    assert (record["document"]["tokens"] > 0) is not from_quotes


def test_a_saved_prefill_that_is_named_is_used(
    call: Call, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVCLI_FROM_QUOTES")
    book.write_text("It rained all day, and nobody came.\n\n" * 900 + TEXT)
    saved = book.with_suffix(".kv")
    assert call("prefill", "-m", tiny_model, book, "-o", saved).code == 0
    record = call("ask", "-m", tiny_model, "-n", "4", "--json", saved, "When does the ferry leave?").json
    assert record["from_quotes"] is False


@pytest.mark.parametrize(("largest", "copies"), [(1000, 900), (10**9, 1)])
def test_large_models_and_texts_that_are_kept_whole_are_read(
    call: Call, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch, largest: int, copies: int
) -> None:
    monkeypatch.delenv("KVCLI_FROM_QUOTES")
    monkeypatch.setattr("kvcli.pipeline.pipeline.SMALL", largest)
    book.write_text("It rained all day, and nobody came.\n\n" * copies + TEXT)
    record = call("ask", "-m", tiny_model, "-n", "4", "--json", book, "When does the ferry leave?").json
    assert record["from_quotes"] is False


@pytest.mark.parametrize(("said", "covered"), [("At noon.", True), ("At dusk.", False)])
def test_quotes_come_before_an_answer_that_they_do_not_cover(
    call: Call, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch, said: str, covered: bool
) -> None:
    """On a terminal, if the answer is not streamed. Pipes begin with the answer."""
    answer = Answer(said, "stop", 1, 1, 0.1, 0.1)
    monkeypatch.setattr("kvcli.pipeline.pipeline.generate", lambda *_, **__: iter([answer]))
    command = ("ask", "-q", "-S", "--cite", "-m", tiny_model, book, "When does the ferry leave?")
    assert call(*command).out.startswith(said)
    monkeypatch.setattr("kvcli.cli.views.terminal.is_terminal", lambda _stream: True)
    lines = call(*command).out.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith(said))
    quote = next(n for n, line in enumerate(lines) if line.startswith("line 1"))
    assert (place < quote) == covered
