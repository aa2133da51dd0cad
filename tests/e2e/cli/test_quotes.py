"""``kvcli ask``'s quotes: below a cited answer, alone with ``--quotes-only``, and in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcli.events import Answer, Token
from kvcli.retrieval.answer_span import AnswerSpan
from tests.e2e.conftest import Call, Validate
from tests.unit.models.test_encoder import made as save_encoder

TEXT = "The ferry leaves at noon from the east pier.\n\nThe harbour master owns two parrots.\n\nIt rained all day.\n"


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


@pytest.mark.parametrize("alone", [["--quotes-only"], ["-t", "quote"]])
def test_quotes_alone_need_no_model(call: Call, book: Path, alone: list[str]) -> None:
    outcome = call("ask", "-m", "there/is/none", *alone, book, "When does the ferry leave?")
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


def test_the_index_of_a_long_text_is_stored_and_deleted_with_its_prefill(
    call: Call, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvcli.retrieval.sentences.STORED_FROM", len(TEXT))
    monkeypatch.setattr("kvcli.pipeline.pipeline.STORED_FROM", len(TEXT))
    command = ("ask", "-t", "quote", book, "When does the ferry leave?")
    plain = call(*command, "--no-cache")
    assert call("cache", "ls", "--json").json["texts"] == []
    assert call(*command).out == call(*command).out == plain.out
    (stored,) = call("cache", "ls", "--json").json["texts"]
    assert stored["name"] == str(book)
    assert call("cache", "rm", "--all").code == 0
    assert call("prefill", "-m", tiny_model, book).code == 0
    listed = call("cache", "ls", "--json").json
    assert listed["texts"][0]["path"] == stored["path"]
    assert call("cache", "rm", listed["readings"][0]["id"]).code == 0
    assert not Path(stored["path"]).exists()


def test_an_encoder_ranks_quotes_alone(call: Call, book: Path) -> None:
    asked = ("ask", "--quotes-only", "--json", book, "When does the ferry leave?")
    plain, ranked = call(*asked), call(*asked, "--rerank", save_encoder(book.parent / "encoder"))
    assert ranked.code == 0, ranked.err
    assert {q["text"] for q in ranked.json["quotes"]} == {q["text"] for q in plain.json["quotes"]}
    absent = call(*asked, "--rerank", "no/such-encoder")
    assert absent.code == 4
    assert "not on this machine" in absent.json["error"]["message"]


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


def test_a_measured_model_does_not_read_what_it_would_evict_unless_a_recipe_is_named(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "long.txt").write_text("It rained all day. " * 90 + TEXT)
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    command = ("ask", "-m", tiny_model, "-n", "4", "--json", folder / "long.txt")
    question = "When does the ferry leave?"
    unread = call(*command, question).json
    assert unread["from_quotes"] is True
    assert (unread["document"]["tokens"], unread["kv"]["kept"]) == (0, 0)
    assert unread["answer"] in TEXT
    named = ("--budget", "512"), ("--policy", "keydiff(budget=512)"), ("--kv-bits", "8"), ("--chunk-size", "256")
    other = ("--rebuild",), ("--stop", "x"), ("--choices", "yes,no"), ("--no-from-quotes",), ("--reread", "1")
    for options in (*named, *other):
        read = call(*command, *options, question).json
        assert read["from_quotes"] is False, options
        assert read["document"]["tokens"] > 1024, options
    several = call(*command[:-1], "-Q", "-", command[-1], stdin=f"{question}\nTell me more.\n".encode())
    first, second = (json.loads(line) for line in several.out.splitlines())
    assert (first["from_quotes"], second["from_quotes"]) == (True, False), "an instruction needs the whole text"


def test_nothing_says_that_a_text_is_read_if_it_is_not(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, validate: Validate
) -> None:
    book, question, instruction = folder / "long.txt", "When does the ferry leave?", "Tell me more."
    book.write_text("It rained all day. " * 90 + TEXT)
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    command = ("ask", "-m", tiny_model, "-n", "4", book)
    reading = re.compile(r"keeping|kept|^prefill|prefill \d|cached|KV cache \d+ B|reread", re.MULTILINE)
    for options in ((), ("-v",), ("--stats",), ("-v", "--stats"), ("--from-quotes",), ("--json",)):
        told = call(*command, question, *options).err
        assert not reading.search(told), told
        assert "the rest of the text is not read" in told
    record = call(*command, question, "--json").json
    validate(record)
    tokens = call(*command, instruction, "--json").json["document"]["tokens"]
    assert (record["document"]["tokens"], record["document"]["dropped"]) == (0, tokens)
    assert (record["kv"]["recipe"], record["kv"]["budget"], record["kv"]["cache"]) == (None, None, "off")
    read = call(*command, "-e", question, "-e", instruction, "-e", instruction).err
    before, after = read.split("recipe ")
    assert "not read" in before, "the first question"
    assert re.match(r" *\w+ \d+ . keeping [\d,]+ of [\d,]+ tokens", after), "once, before the text is read"
    assert re.search("^model .* keeping", call(*command, instruction).err, re.MULTILINE), "it is known at once"


def test_each_and_map_answer_as_ask_does(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, validate: Validate
) -> None:
    """A text that would be evicted from, one that is kept whole, and one that no sentence of answers."""
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    texts = {"long.txt": "It rained all day. " * 90 + TEXT, "short.txt": TEXT, "other.txt": "It rained all day. " * 90}
    for name, text in texts.items():
        (folder / name).write_text(text)
    asked = ("-m", tiny_model, "-n", "4", "--quotes", "0", "--dtype", "float32")
    question, wanted = "When does the ferry leave?", dict[str, object]()
    for name in texts:
        wanted[name] = call("ask", *asked, "--json", folder / name, question).json
    for options in ((), ("--policy", "full"), ("--no-from-quotes",)):
        for command in (("ask", "--each", "--json"), ("map",)):
            found = call(*command, *asked, *options, *(folder / name for name in texts), "-e", question)
            records = [json.loads(line) for line in found.out.splitlines()]
            assert [Path(record["file"]).name for record in records] == list(texts), found.err
            for record in records:
                validate(record)
                alone = not options and "other" not in record["file"]
                assert record["from_quotes"] is alone
                same = wanted[Path(record["file"]).name]
                fields = ("answer", "document", "from_quotes", "looked_again", "usage")
                assert options or all(record[field] == same[field] for field in fields)


@pytest.mark.parametrize("text", [TEXT, "It rained all day. " * 90 + TEXT])
def test_a_saved_prefill_is_asked_as_its_text_is(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Its recipe was named for it, and not for the question."""
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    (folder / "book.txt").write_text(text)
    asked = ("ask", "-m", tiny_model, "-n", "4", "--json", "--dtype", "float32")
    assert call("prefill", *asked[1:3], "--dtype", "float32", "book.txt", "-o", "book.kv").code == 0
    question = "When does the ferry leave?"
    saved, read = (call(*asked, name, question).json for name in ("book.kv", "book.txt"))
    assert saved["from_quotes"] is True
    assert saved["answer"] == read["answer"]
    assert call(*asked, "book.kv", question, "--no-from-quotes").json["from_quotes"] is False
    assert call(*asked, "book.kv", "Tell me more.").json["from_quotes"] is False


def test_map_asks_again_if_answers_are_made_in_another_way(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "long.txt").write_text("It rained all day. " * 90 + TEXT)
    command = ("map", "-m", tiny_model, "-n", "4", "long.txt", "-e", "When does the ferry leave?", "-o", "a.jsonl")

    def lines(*options: str) -> int:
        assert call(*command, *options).code == 0
        return len((folder / "a.jsonl").read_text().splitlines())

    assert (lines(), lines("--no-from-quotes"), lines("--rebuild")) == (1, 1, 1), (
        "one way of a model that was not measured"
    )
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    assert lines("--no-from-quotes") == 1
    assert (lines(), lines(), lines("--rebuild")) == (2, 2, 2)


def test_plans_say_what_needs_no_prefill(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = folder / "long.txt"
    book.write_text("It rained all day. " * 90 + TEXT)
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    says = "answered without this prefill if a sentence"
    for command in (("plan",), ("map", "--plan", "-e", "Who?")):
        wanted = (*command, "-m", tiny_model, book)
        assert says in call(*wanted).out
        for options in (("--budget", "256"), ("--policy", "full"), ("-s", "Be brief.")):
            assert says not in call(*wanted, *options).out
    assert says not in call("plan", "-m", tiny_model, book, "-e", "Tell me more.").out
    assert call("plan", "-m", tiny_model, book, "--json").json["plan"]["questions_need_prefill"] is False


def test_an_answer_in_words_of_the_text(call: Call, tiny_model: Path, book: Path) -> None:
    command = ("ask", "-m", tiny_model, "-q", "--json", book, "When does the ferry leave?", "--verbatim")
    record = call(*command).json
    assert record["from_quotes"] is True
    spans = [" ".join(TEXT[p["char_start"] : p["char_end"]].split()) for p in record["looked_again"]]
    assert any(record["answer"] in span for span in spans)
    assert record["answer"]
    assert call(*command, "--no-from-quotes").code == 2
    assert call(*command, "--stop", "x").code == 2
    assert call(*command, "--choices", "a,b").code == 2


def test_an_answer_from_quotes_says_so(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    command = ("ask", "-m", tiny_model, "-n", "4", "--from-quotes", book)
    outcome = call(*command, "When does the ferry leave?")
    assert outcome.code == 0, outcome.err
    assert "the rest of the text is not read" in outcome.err
    record = call(*command, "--json", "When does the ferry leave?").json
    validate(record)
    assert record["from_quotes"] is True
    assert record["answer"] == record["answer"].lstrip()
    assert (record["document"]["tokens"], record["kv"]["kept"]) == (0, 0), "the document is not read"
    spans = [TEXT[p["char_start"] : p["char_end"]] for p in record["looked_again"]]
    assert spans[-1] == "The ferry leaves at noon from the east pier."
    usual = call(*command, "--json", "Which regatta did Wren win?").json
    assert usual["from_quotes"] is False
    assert usual["document"]["tokens"] > 0


def test_a_measured_model_answers_from_quotes_unless_told_otherwise(
    call: Call, tiny_model: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("ask", "-m", tiny_model, "-n", "4", "-v", book, "When does the ferry leave?")
    usual = call(*command)
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    chosen = call(*command)
    assert "by the model's own template" in usual.err
    assert "by worked examples" in chosen.err
    for options, alone in (
        ((), True),
        (("--no-from-quotes",), False),
        (("--exit-status",), False),
        (("--cite", "strict"), False),
        (("--reread", "0"), False),
        (("--query-aware",), False),
        (("-t", "summary"), False),
    ):
        outcome = call(*command, "--json", *options)
        assert outcome.json["from_quotes"] is alone, options
        assert outcome.json["document"]["tokens"] > 0, "it is read all the same"


NOT_COVERED = "is not covered by these sentences of the text:"


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the model write an answer."""

    def write(text: str) -> None:
        events = (Token(0, text), Answer(text, "stop", 1, 1, 0.1, 0.1))
        monkeypatch.setattr("kvcli.pipeline.pipeline.generate", lambda *_, **__: iter(events))
        monkeypatch.setattr("kvcli.pipeline.pipeline.answer_span", lambda *_: AnswerSpan(text, 1, 0.0))

    return write


@pytest.mark.parametrize("screen", [True, False])
@pytest.mark.parametrize(("said", "covered"), [("At noon.", True), ("At dusk.", False)])
def test_quotes_come_before_an_answer_that_they_do_not_cover(
    call: Call,
    tiny_model: Path,
    book: Path,
    say: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    covered: bool,
    screen: bool,
) -> None:
    """Of a model that is often wrong, and of any other with ``--no-stream``; else what follows the answer says it."""
    say(said)
    monkeypatch.setattr("kvcli.cli.views.terminal.is_terminal", lambda _stream: screen)
    command = ("ask", "-q", "--cite", "-m", tiny_model, book, "When does the ferry leave?")
    larger, held = call(*command).out, call(*command, "-S").out
    call(*command, "-S", "-o", book.parent / "out.txt")
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    small, streamed = call(*command).out, call(*command, "--stream").out
    assert (larger, small) == (streamed, held)
    for text, above in ((larger, False), (small, not covered)):
        lines = text.splitlines()
        place = next(n for n, line in enumerate(lines) if line.startswith(said))
        quotes = [n for n, line in enumerate(lines) if line.startswith("line ")]
        assert quotes
        assert all((n < place) == above for n in quotes)
        assert (NOT_COVERED in text) == (not covered)
        assert lines[0] == ("The answer below " + NOT_COVERED if above else said)
    assert "\x1b" in small or not screen
    assert re.sub(r"\x1b\[\d+m", "", small) == (book.parent / "out.txt").read_text()


@pytest.mark.parametrize(
    ("said", "shown"), [("the east pier", True), ("The ferry leaves at noon from the east", False)]
)
def test_a_sentence_is_shown_unless_its_citation_shows_most_of_it(
    call: Call, tiny_model: Path, book: Path, say: Callable[[str], None], said: str, shown: bool
) -> None:
    say(said)
    out = call("ask", "-q", "--cite", "-m", tiny_model, book, "Where does the ferry leave at noon?").out
    assert "found in text" in out
    assert ("“The ferry leaves at noon from the east pier.”" in out) == shown


def test_the_words_of_the_question_are_bold_in_quotes_and_citations(
    call: Call, tiny_model: Path, book: Path, say: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("The ferry leaves at noon from the east pier.")
    monkeypatch.setattr("kvcli.cli.views.terminal.is_terminal", lambda _stream: True)
    command = ("ask", "-q", "-m", tiny_model, book, "-e", "When does the ferry leave for the harbour?")
    answer, cited, *rest = call(*command).out.splitlines()
    assert "\x1b" not in answer
    assert cited.startswith('[1] line 1 "The\x1b[1m ferry\x1b[22m\x1b[1m leaves\x1b[22m at noon')
    assert any(line.startswith("line 3 “The\x1b[1m harbour\x1b[22m master") for line in rest)
    call(*command, "--export", book.parent / "a.md")
    assert "\x1b" not in (book.parent / "a.md").read_text()


def test_an_answer_without_quotes_is_streamed(
    call: Call, tiny_model: Path, book: Path, say: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("At dusk.")
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    written = list[str]()
    monkeypatch.setattr("kvcli.cli.views.markdown.PlainAnswer.write", lambda _, text: written.append(text))
    for options in ((), ("--cite", "--quotes", "0")):
        assert call("ask", "-q", "-m", tiny_model, book, "When does the ferry leave?", *options).code == 0
        assert written
        written.clear()
    assert call("ask", "-m", tiny_model, book, "Why?", "--stream", "-S").code == 2


def test_a_text_that_seems_not_to_answer_is_said_first(
    call: Call, tiny_model: Path, book: Path, say: Callable[[str], None]
) -> None:
    say("At dusk.")
    command = ("ask", "-S", "--cite", "-m", tiny_model, book)
    said = "o sentence of the text seems to answer"
    near = call(*command, "--exit-status", "Which regatta in Valparaiso did Captain Wren lose to a harbour thief?")
    assert near.code == 10
    assert near.out.startswith(f"N{said}. The nearest:\nline 3 “The harbour master")
    assert near.out.endswith("\n\nAt dusk.\n")
    assert said not in near.err, "it is said once"
    far = call(*command, "Whose regatta?")
    assert far.out.startswith("At dusk.\n")
    assert said in far.err


def test_map_refuses_a_task_that_writes_no_answer(call: Call, book: Path) -> None:
    outcome = call("map", "-t", "quote", book, "-e", "Who?")
    assert outcome.code == 2
    assert "the task quote prints quotes only" in outcome.err
