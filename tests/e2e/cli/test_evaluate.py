"""``kvcli eval`` as a person meets it: a table, JSON as the last line, a file that resumes, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvcli.evaluate.tasks import TASKS
from tests.e2e import golden
from tests.e2e.conftest import Call, Validate

SENTENCE = "Queequeg was a native of Kokovoko, an island far away to the West and South. "


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(SENTENCE * 60)
    return folder / "book.txt"


def test_help_names_every_task(call: Call) -> None:
    text = call("eval", "--help").out
    for name in TASKS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert "Usage: kvcli eval [OPTIONS] TASK" in text


def test_recipes_side_by_side_and_a_second_run(tiny_model: Path, book: Path, call: Call, validate: Validate) -> None:
    """The tiny model has 4,096 positions, which full attention outgrows and a budget does not."""
    words = ["eval", "needle,passkey", book, "-m", tiny_model, "--lengths", "2K,4500", "--cases", "2"]
    words += ["--policy", "full", "--policy", "keydiff", "--budget", "256", "--budget", "512", "--out", "out.jsonl"]
    done = call(*words)
    assert done.code == 0, done.err
    *table, last = done.out.splitlines()
    found = json.loads(last)
    validate(found)
    assert re.match(r"task +recipe +2K +4,500", table[0])
    assert sum(line.startswith(("needle  ", "passkey  ")) for line in table) == 6
    assert sum("2 of 2 cases skipped: " in line and re.search(r"4,4\d\d", line) is not None for line in table) == 2
    cells = {(c["task"], c["recipe"], c["length"]): c for c in found["cells"]}
    assert len(cells) == 12
    assert cells["needle", "full", 4500]["skipped"]["n"] == 2
    assert cells["needle", "full", 4500]["mean"] is None
    assert cells["needle", "keydiff(budget=256)", 4500]["n"] == 2
    assert cells["needle", "keydiff(budget=256)", 4500]["kept"] == 256
    assert len(Path(book.parent / "out.jsonl").read_text().splitlines()) == 1 + 20
    assert "case     20/20" in done.err
    again = call(*words)
    assert json.loads(again.out.splitlines()[-1])["cells"] == found["cells"]
    assert "case " not in again.err
    other = call(*words, "--seed", "1")
    assert other.code == 7
    assert "was made with another seed: 0 there, 1 here" in other.err


def test_own_document_whole_and_the_recipe_of_ask(tiny_model: Path, book: Path, call: Call) -> None:
    found = call("eval", "needle", book, "-m", tiny_model, "--cases", "1", "--json", "-q")
    assert found.code == 0, found.err
    assert found.err == ""
    (cell,) = found.json["cells"]
    assert cell["recipe"].startswith("snapkv(budget=512")
    assert cell["length"] > 4000
    assert cell["length"] - cell["tokens"] < 100


def test_looks_side_by_side(tiny_model: Path, book: Path, call: Call, validate: Validate) -> None:
    words = ["eval", "needle", book, "-m", tiny_model, "--lengths", "2K", "--cases", "1", "--policy", "keydiff"]
    done = call(*words, "--budget", "256", "--reread", "0,3")
    assert done.code == 0, done.err
    *table, last = done.out.splitlines()
    validate(found := json.loads(last))
    assert [(c["recipe"], c["look_again"], c["n"]) for c in found["cells"]] == [
        ("keydiff(budget=256)", 0, 1),
        ("keydiff(budget=256)", 3, 1),
    ]
    assert sum("keydiff(budget=256) · reread 3" in line for line in table) == 1


def test_benchmark_files(tiny_model: Path, folder: Path, call: Call, validate: Validate) -> None:
    data = {"instructions": ["Who?\nA. Ishmael\nB. Ahab", "Where?\nA. Sea\nB. Land"], "outputs": ["A", "B"]}
    (folder / "exam.jsonl").write_text(json.dumps({**data, "input": SENTENCE * 9, "evaluation": "exam"}) + "\n")
    found = call("eval", "data", "--data", "exam.jsonl", "-m", tiny_model, "--policy", "full", "--json", "-q")
    assert found.code == 0, found.err
    validate(found.json)
    (cell,) = found.json["cells"]
    assert (cell["task"], cell["length"], cell["n"], cell["questions"]) == ("exam", None, 1, 2)
    assert cell["metrics"] == ["choice"]


def test_quotes_by_words_and_by_the_model(tiny_model: Path, book: Path, call: Call, validate: Validate) -> None:
    words = ["eval", "quotes", book, "-m", tiny_model, "--lengths", "1K", "--cases", "2", "--out", "quotes.jsonl"]
    done = call(*words)
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    validate(found)
    cells = {(c["task"], c["recipe"]): c for c in found["cells"]}
    assert len(cells) == 4
    assert cells["one of three", "words"]["mean"] == 1
    assert all(c["n"] == 2 for c in cells.values())
    assert json.loads(call(*words, "--json", "-q").out)["cells"] == found["cells"]
    (book.parent / "q.jsonl").write_text('{"question": "Where is Kokovoko?", "answers": ["far away"]}\n')
    alone = call("eval", "quotes", "-m", tiny_model, book, "--data", "q.jsonl", "--json", "-q").json
    assert {c["questions"] for c in alone["cells"]} == {1}


@pytest.mark.usefixtures("book")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["eval"], 2),
        (["eval", "neddle"], 2),
        (["eval", "kv", "book.txt"], 2),
        (["eval", "data"], 2),
        (["eval", "gold", "--lengths", "4K", "--data", "x.jsonl"], 2),
        (["eval", "needle", "--data", "x.jsonl"], 2),
        (["eval", "needle", "--lengths", "4 pages"], 2),
        (["eval", "needle", "--reread", "0,some"], 2),
        (["eval", "needle", "--reread", "-1"], 2),
        (["eval", "needle", "--policy", "full", "--budget", "9"], 2),
        (["eval", "needle", "--policy", "keydif"], 2),
        (["eval", "needle", "--out", "no/such.jsonl"], 2),
        (["eval", "needle", "missing.txt"], 3),
        (["eval", "data", "--data", "missing.jsonl"], 3),
        (["eval", "needle", "--lengths", "8K", "--policy", "full"], 6),
        (["eval", "needle", "book.txt", "--lengths", "9000"], 3),
        (["eval", "needle,quotes"], 2),
        (["eval", "quotes", "--policy", "full"], 2),
        (["eval", "quotes", "--reread", "3"], 2),
        (["eval", "needle", "--rerank", "x"], 2),
        (["eval", "quotes", "--rerank", "no/such-encoder"], 4),
    ],
)
def test_bad_input(tiny_model: Path, call: Call, words: list[str], code: int) -> None:
    outcome = call(*words, "-m", tiny_model, "-q")
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    _, hint = outcome.err.splitlines()
    assert hint.startswith("  try: ")
    golden.check(f"error: kvcli {' '.join(words)}", outcome.err, hide={str(tiny_model): "MODEL"})
