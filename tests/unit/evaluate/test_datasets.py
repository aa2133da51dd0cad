"""Files of ``--data``: each benchmark's shape is recognised, and a damaged one is refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kvcli.errors import InputError
from kvcli.evaluate import datasets
from kvcli.evaluate.case import Case
from kvcli.evaluate.metrics import score

STORY = "A story of a whale. " * 9
LEVAL = {"input": STORY, "source": "x", "evaluation": "exam"}
PARAGRAPH = {
    "context": "The tower was built in 1889. " * 3,
    "qas": [{"id": "1", "question": "When was it built?", "answers": [{"text": "1889"}, {"text": "1889"}]}],
}
HOTPOT = "The following are given passages.\nPassage 1: a\n\nAnswer the question based on the given passages."
EXAMPLES = "Q\nQuestion: a?\nType: Date\nQuestion: b?\nType:"
CLASSES = {"answers": ["Food"], "all_classes": ["Food", "Date"]}
PAIRS = [["a-1", "b-2"], ["c-3", "d-4"]]
KEY = {"context": STORY, "input": "What is the pass key?", "answer": "52601", "prompt": "Find it."}
LINE = "    return 1"


def exam(question: str, answer: str, evaluation: str = "exam") -> dict[str, Any]:
    return {**LEVAL, "evaluation": evaluation, "instructions": [question], "outputs": [answer]}


def long(task: str, prompt: str, gold: Any) -> dict[str, Any]:
    return {"task": task, "prompt": prompt, "gold": gold}


# A row; its task, metric and gold; an answer with full marks.
SHAPES: list[tuple[dict[str, Any], str, str, str, str]] = [
    (exam("Who?\nA. I\nB. He", "B"), "exam", "choice", "B", "B. He"),
    (exam("Who?\n\n (A) I\n (B) He", "(B) He"), "exam", "choice", "B", "(B) He"),
    (exam("True or False?", "True [fact: False]"), "exam", "truth", "True", "true"),
    (exam("First topic?", "Art"), "exam", "any", "Art", "It was art."),
    (exam("When?", "in 1851", "f1"), "exam", "f1", "in 1851", "in 1851"),
    (long("hotpotqa", f"{HOTPOT} Question: Who?\nAnswer:", ["Bob"]), "hotpotqa", "f1", "Bob", "Bob"),
    (long("trec", EXAMPLES, CLASSES), "trec", "classes", "Food", "Food\nQuestion: Date?"),
    (long("lcc", "def f():\nNext line of code:\n", [LINE]), "lcc", "code", LINE, LINE),
    (KEY, "exam", "first_number", "52601", "52601."),
    ({"context": STORY, "input": "Who?", "answer": ["He"], "options": ["I", "He"]}, "exam", "choice", "B", "B"),
    ({"ordered_kv_records": PAIRS, "key": "c-3", "value": "d-4"}, "exam", "contains", "d-4", 'It is "d-4"'),
    (PARAGRAPH, "exam", "f1", "1889", "1889"),
    ({"title": "T", "text": STORY, "question": "What?", "answers": ["a whale"]}, "exam", "f1", "a whale", "whale"),
]


def case(rows: list[dict[str, Any]], path: Path) -> tuple[str, Case]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = datasets.jobs(datasets.read([str(path)]), None)[0]
    return job.task, job.make()


@pytest.mark.parametrize(("row", "task", "metric", "gold", "answer"), SHAPES)
def test_a_row_of_each_benchmark(
    row: dict[str, Any], task: str, metric: str, gold: str, answer: str, tmp_path: Path
) -> None:
    name, found = case([row, row], tmp_path / "exam.jsonl")
    (question,) = found.questions
    assert (name, question.metric, question.gold[0]) == (task, metric, gold)
    assert found.text.strip()
    assert question.text.strip()
    assert score(answer, question) == 1
    assert score("zzz", question) == 0


def test_a_question_leaves_the_text(tmp_path: Path) -> None:
    _, found = case([SHAPES[5][0]], tmp_path / "x.jsonl")
    assert found.text == HOTPOT.rpartition("\n\n")[0]
    assert found.questions[0].text.startswith("Answer the question based on the given passages.")
    assert found.questions[0].text.endswith("Question: Who?")
    assert not found.raw
    _, shots = case([SHAPES[6][0]], tmp_path / "x.jsonl")
    assert shots.raw
    assert (shots.text, shots.questions[0].text) == ("Q\nQuestion: a?\nType: Date", "\nQuestion: b?\nType:")


def test_packed_nested_and_in_folders(tmp_path: Path) -> None:
    folder = tmp_path / "squad" / "deep"
    folder.mkdir(parents=True)
    whole = {"version": "1.1", "data": [{"title": "The_Tower", "paragraphs": [PARAGRAPH, PARAGRAPH]}]}
    (folder / "dev.json.gz").write_bytes(gzip.compress(json.dumps(whole).encode()))
    (folder / "more.json").write_text(json.dumps([{**PARAGRAPH, "context": "Another text."}]))
    (folder / "README.md").write_text("no data")
    data = datasets.read([str(tmp_path / "squad")])
    assert [(job.task, job.number) for job in datasets.jobs(data, None)] == [("dev", 0), ("dev", 1), ("more", 0)]
    assert [(job.task, job.number) for job in datasets.jobs(data, 1)] == [("dev", 0), ("more", 0)]
    found = datasets.passages(data)
    assert [p.title for p in found.all] == ["The Tower", ""]
    assert found.all[0].asked[0] == ("When was it built?", ("1889",))


def test_the_digest_tells_files_apart(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text, "question": "?", "answers": ["1"]}))
    a, b, c = (datasets.read([str(tmp_path / f"{name}.jsonl")]).sha256 for name in "abc")
    assert a == b != c


def make_all(path: Path) -> list[Case]:
    return [job.make() for job in datasets.jobs(datasets.read([str(path)]), None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"not json\n", "line 1 of .* is not JSON"),
        ("a.jsonl", b'{"x": 1}\n', "of no benchmark known here; its fields are: x"),
        ("a.jsonl", b"", "no rows|not JSON"),
        ("a.jsonl", b"[1, 2]", "no rows that are JSON objects"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"),
        ("a.csv", b"x", "is none of .jsonl"),
        ("a.jsonl", b'{"task": "hotpotqa", "prompt": "no question", "gold": ["x"]}', "row 1 of a is damaged"),
        ("a.jsonl", b'{"task": "new", "prompt": "p", "gold": ["x"]}', "row 1 of a is damaged"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        make_all(tmp_path / name)
    assert "\n" not in refusal.value.message


def test_rows_that_are_no_passages(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(SHAPES[0][0]))
    with pytest.raises(InputError, match="row 1 of a is not a passage"):
        datasets.passages(datasets.read([str(tmp_path / "a.jsonl")]))
    with pytest.raises(InputError, match="does not exist"):
        datasets.read([str(tmp_path / "missing.jsonl")])
