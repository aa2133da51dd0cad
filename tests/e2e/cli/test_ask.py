"""Questions, files and answers: who is who, one reading for many, and what is said of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Call, Validate

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. " * 12


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def ask(call: Call, model: Path, *args: str, stdin: bytes | None = None) -> dict[str, object]:
    outcome = call("ask", "-m", model, "-n", "12", "--json", *args, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome.json  # type: ignore[no-any-return]


def test_the_answer_and_nothing_else(call: Call, tiny_model: Path, book: Path) -> None:
    command = ("ask", "-m", tiny_model, "-n", "12", "--budget", "300", book, "Who?")
    outcome = call(*command)
    assert outcome.code == 0
    assert outcome.out == f"{call(*command, '--json').json['answer']}\n"
    assert len(outcome.out) == 12 + 1
    assert set(outcome.out.strip()) <= set("abcdefgh")
    heads, *said = outcome.err.splitlines()
    assert heads.startswith("heads    none for ")
    assert said[0].startswith(f"document {book}")
    assert " 300 · keeping 300 of" in said[1]
    assert said[2].startswith("prefill ")
    assert "tok/s" in said[2]
    assert said[3].startswith("reread   3 passages")
    assert "12 tokens" in said[4]
    assert len(said) == 5


def test_the_same_every_time_and_streamed_or_not(call: Call, tiny_model: Path, book: Path) -> None:
    streamed = call("ask", "-m", tiny_model, "-n", "30", book, "Who?")
    whole = call("ask", "-m", tiny_model, "-n", "30", "-S", book, "Who?")
    assert streamed.out == whole.out != "\n"


def test_answers_of_a_form(call: Call, tiny_model: Path, book: Path, folder: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    (folder / "n.json").write_text(json.dumps(schema))
    ask_form = ("ask", "-q", "-m", tiny_model, book, "How many?")
    assert json.loads(call(*ask_form, "--schema", "n.json").out)["n"] in (1, 22)
    assert json.loads(call(*ask_form, "--schema", "n.json", "--json").json["answer"])["n"] in (1, 22)
    assert call(*ask_form, "--choices", "yes, no,unclear").out in ("yes\n", "no\n", "unclear\n")
    for n in ("1", "3"):
        cut = call(*ask_form, "--schema", "n.json", "-n", n)
        assert (cut.code, cut.out) == (6, "")
    (folder / "bad.json").write_text('{"type": "nothing"}')
    (folder / "torn.json").write_text("{")
    wrong = {("--schema", "none.json"): 3, ("--schema", "torn.json"): 3, ("--schema", "bad.json"): 2}
    wrong |= {("--choices", "yes"): 2, ("--choices", "a,b", "--schema", "n.json"): 2}
    wrong |= {("--choices", "a,b", "--stop", "x"): 2, ("--choices", "a,b", "--from-quotes"): 2}
    for options, code in wrong.items():
        outcome = call(*ask_form, *options)
        assert (outcome.code, outcome.out) == (code, ""), options


def test_quiet_and_statistics(call: Call, tiny_model: Path, book: Path) -> None:
    assert call("ask", "-q", "-m", tiny_model, "-n", "12", book, "Who?").err == ""
    said = call("ask", "--stats", "-m", tiny_model, "-n", "12", book, "Who?").err
    for word in ("start", "extract", "load", "prefill", "first token", "decode", "tok/s", "peak", "planned"):
        assert word in said


def test_the_json_object(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    answer = call("ask", "-m", tiny_model, "-n", "12", "--json", "--budget", "25%", book, "Who?").json
    validate(answer)
    tokens = answer["document"]["tokens"]
    assert tokens > len(TEXT)
    assert answer["document"] == {
        "files": [str(book)],
        "pages": None,
        "without_text": [],
        "tokens": tokens,
        "dropped": 0,
        "sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
    }
    assert answer["kv"]["budget"] == answer["kv"]["kept"] == round(tokens / 4)
    assert answer["kv"]["recipe"].startswith(f"snapkv(budget={round(tokens / 4)}, ")
    assert answer["kv"]["bytes"] == 2 * 2 * 2 * 8 * answer["kv"]["kept"] * answer["kv"]["bits"] // 8
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["memory"]["planned_bytes"] > answer["model"]["weight_bytes"]
    assert len(answer["warnings"]) == 1


def test_a_size_as_budget(call: Call, tiny_model: Path, book: Path) -> None:
    kv = call("ask", "-m", tiny_model, "-n", "2", "--json", "--budget", "16KiB", book, "Who?").json["kv"]
    assert kv["bytes"] <= 16384 < kv["bytes"] + kv["bytes"] // kv["kept"]


@pytest.mark.usefixtures("book")
def test_documents_from_everywhere(call: Call, tiny_model: Path, folder: Path) -> None:
    (folder / "b.md").write_text("# B\n")
    files = lambda answer: answer["document"]["files"]  # noqa: E731
    assert files(ask(call, tiny_model, "book.txt", "Who?")) == ["book.txt"]
    assert files(ask(call, tiny_model, "book.txt", "b.md", "Who?")) == ["book.txt", "b.md"]
    assert files(ask(call, tiny_model, "-f", "b.md", "--context", "book.txt", "Who?")) == ["b.md", "book.txt"]
    assert files(ask(call, tiny_model, "b.md", "-e", "Who?")) == ["b.md"]
    assert files(ask(call, tiny_model, "Who?", stdin=b"piped")) == ["stdin"]
    assert files(ask(call, tiny_model, "-f", "-", "b.md", "Who?", stdin=b"piped")) == ["stdin", "b.md"]
    assert files(ask(call, tiny_model, "b.md", "Who?", stdin=b"not asked for")) == ["b.md"]
    assert files(ask(call, tiny_model, "Who?")) == []


def test_no_document_is_a_plain_question(call: Call, tiny_model: Path, validate: Validate) -> None:
    outcome = call("ask", "-m", tiny_model, "-n", "5", "--json", "What is the capital of France?")
    validate(outcome.json)
    assert outcome.json["document"]["sha256"] is None
    assert outcome.json["kv"]["kept"] == outcome.json["kv"]["bytes"] == 0
    assert "no document" in outcome.err


@pytest.mark.usefixtures("book")
def test_raw_and_system_change_the_prompt(call: Call, tiny_model: Path) -> None:
    tokens = [
        ask(call, tiny_model, *options, "book.txt", "Who?")["document"]["tokens"]  # type: ignore[index]
        for options in ([], ["-r"], ["-s", "Be brief."])
    ]
    assert tokens[1] == len(TEXT) < tokens[0] < tokens[2]


def test_warnings_are_said_and_recorded(call: Call, tiny_model: Path, folder: Path) -> None:
    (folder / "old.txt").write_bytes("Straße und Größe".encode("cp1252"))
    outcome = call("ask", "-m", tiny_model, "-n", "3", "--json", "old.txt", "Who?")
    assert "3 bytes were not UTF-8" in outcome.err.splitlines()[0]
    assert "3 bytes were not UTF-8" in outcome.json["warnings"][0]


@pytest.mark.usefixtures("book")
def test_many_questions_one_reading(call: Call, tiny_model: Path, folder: Path, validate: Validate) -> None:
    (folder / "q.jsonl").write_text(
        '{"id": "a", "question": "Who?"}\n\n{"id": 7, "question": "Where?", "answer": "x"}\n'
    )
    outcome = call("ask", "-m", tiny_model, "-n", "9", "--json", "book.txt", "-e", "Why?", "-Q", "q.jsonl")
    assert outcome.code == 0
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    for answer in answers:
        validate(answer)
    assert [a["question"] for a in answers] == ["Why?", "Who?", "Where?"]
    assert [a.get("id") for a in answers] == [None, "a", 7]
    assert outcome.err.count("prefill ") == 1
    same = ("--policy", answers[1]["kv"]["recipe"])
    assert answers[1]["answer"] == ask(call, tiny_model, "-n", "9", *same, "book.txt", "Who?")["answer"]


@pytest.mark.usefixtures("book")
def test_many_answers_as_text(call: Call, tiny_model: Path, folder: Path) -> None:
    (folder / "q.txt").write_text("Who?\n\n  Where?  \n")
    outcome = call("ask", "-m", tiny_model, "-n", "9", "book.txt", "-Q", "q.txt")
    one, _, first, blank, two, _, second = outcome.out.splitlines()
    assert (one, blank, two) == ("## Who?", "", "## Where?")
    assert len(first) == len(second) == 9
    assert "question [2/2] Where?" in outcome.err


@pytest.mark.usefixtures("book")
def test_a_policy_that_reads_for_each_question(call: Call, tiny_model: Path) -> None:
    options = (
        "-m",
        tiny_model,
        "-n",
        "9",
        "--policy",
        "snapkv(budget=64)",
        "book.txt",
        "-e",
        "Who?",
        "-e",
        "Why?",
    )
    outcome = call("ask", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("prefill ") == 2


@pytest.mark.usefixtures("book")
def test_part_of_a_batch_fails(call: Call, tiny_model: Path, validate: Validate) -> None:
    questions = ("-e", "Who?", "-e", "Who? " * 2000, "-e", "Where?")
    outcome = call("ask", "-m", tiny_model, "-n", "5", "--json", "book.txt", *questions)
    assert outcome.code == 8
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    for answer in answers:
        validate(answer)
    assert ["error" in a for a in answers] == [False, True, False]
    assert answers[1]["error"]["code"] == "too_long"
    assert "1 of 3 questions failed" in outcome.err.splitlines()[-1]
    text = call("ask", "-q", "--no-headings", "-m", tiny_model, "-n", "5", "book.txt", *questions)
    assert text.code == 8
    assert len(text.out.split()) == 2


@pytest.mark.usefixtures("book")
def test_output_to_a_file(call: Call, tiny_model: Path, folder: Path) -> None:
    outcome = call("ask", "-m", tiny_model, "-n", "9", "-o", "answer.txt", "book.txt", "Who?")
    assert outcome.out == ""
    assert "written to answer.txt" in outcome.err
    assert len((folder / "answer.txt").read_text().rstrip("\n")) == 9
    call("ask", "-m", tiny_model, "-n", "9", "--json", "-o", "answer.json", "book.txt", "-e", "A?", "-e", "B?")
    assert len((folder / "answer.json").read_text().splitlines()) == 2


@pytest.mark.usefixtures("book")
def test_stop_and_sampling(call: Call, tiny_model: Path) -> None:
    full = ask(call, tiny_model, "book.txt", "Who?")["answer"]
    assert isinstance(full, str)
    stopped = ask(call, tiny_model, "--stop", full[5:7], "book.txt", "Who?")
    assert stopped["finish_reason"] == "stop"
    assert stopped["answer"] == full[: full.index(full[5:7])]
    drawn = [ask(call, tiny_model, "--temp", "5", "--seed", seed, "book.txt", "Who?") for seed in "112"]
    assert drawn[0]["answer"] == drawn[1]["answer"] != drawn[2]["answer"]
    assert drawn[2]["sampling"]["seed"] == 2  # type: ignore[index]


@pytest.mark.usefixtures("book")
def test_questions_from_standard_input(call: Call, tiny_model: Path) -> None:
    outcome = call("ask", "-m", tiny_model, "-n", "4", "--json", "book.txt", "-Q", "-", stdin=b"Who?\nWhy?\n")
    assert [json.loads(line)["question"] for line in outcome.out.splitlines()] == ["Who?", "Why?"]


def test_an_answer_in_circles_is_ended_unless_that_is_allowed(call: Call, tiny_model: Path, book: Path) -> None:
    ended = call("ask", "-m", tiny_model, "--json", book, "Who?", "-n", "1000")
    assert ended.code == 0, ended.err
    made = ended.json["usage"]["completion_tokens"]
    assert made < 1000
    assert ended.json["finish_reason"] == "length"
    assert any(f" {made:,} tokens" in w and "--allow-repetition" in w for w in ended.json["warnings"])
    longer = ask(call, tiny_model, "-n", str(made + 100), "--allow-repetition", book, "Who?")
    assert longer["usage"]["completion_tokens"] == made + 100
    assert longer["answer"].startswith(ended.json["answer"])
