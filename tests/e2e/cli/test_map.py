"""Many documents: answers as lines of a file, which a later run continues whatever ended the earlier one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcli.corpus import worker
from kvcli.corpus.answers_file import AnswersFile
from kvcli.errors import DamagedError
from tests.e2e import forked
from tests.e2e.conftest import PROGRAM, Call, Validate
from tests.unit.documents.makers import Page, pdf
from tests.unit.documents.test_ocr import engine, png  # noqa: F401
from tests.unit.documents.test_web import Site, site  # noqa: F401

POLICY = ("--policy", "keydiff(budget=96)", "--chunk-size", "64", "-n", "6")
QUESTIONS = ("-e", "Who is there?", "-e", "Where?")
Map = Callable[..., Any]


@pytest.fixture
def documents(folder: Path) -> list[str]:
    names = []
    for n in range(4):
        (folder / f"{n}.txt").write_text(
            f"House {n} is blue. Its owner is Anna, and she is {40 + n} years old. " * (3 + n)
        )
        names.append(f"{n}.txt")
    return names


@pytest.fixture
def ask(call: Call, wide_model: Path) -> Map:
    """Run ``kvcli map`` with a tiny model."""
    return lambda *args: call("map", "-m", wide_model, *POLICY, *args)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_ask(
    ask: Map, call: Call, wide_model: Path, folder: Path, documents: list[str], validate: Validate
) -> None:
    documents = documents[:2]
    assert ask(*documents, *QUESTIONS, "-o", "a.jsonl").code == 0
    found = lines(folder / "a.jsonl")
    asked = [(line["file"], line["question"]) for line in found]
    assert asked == [(name, question) for name in documents for question in QUESTIONS[1::2]]
    for line in found:
        validate(line)
        single = call("ask", "-m", wide_model, *POLICY, "--json", "--no-cache", line["file"], line["question"]).json
        for name in ("answer", "finish_reason", "citations", "quotes", "document", "usage", "sampling"):
            assert line[name] == single[name]
        assert line["kv"] == {k: v for k, v in single["kv"].items() if k != "cache"}


@pytest.mark.parametrize("cut", [1, 40, -1, -30])
def test_a_run_that_was_cut_anywhere_is_continued_to_the_same_bytes(
    ask: Map, folder: Path, documents: list[str], cut: int
) -> None:
    """Answers that are there are not asked again, whatever part of the last one is missing."""
    assert ask(*documents, *QUESTIONS, "-o", "a.jsonl").code == 0
    whole, file = (folder / "a.jsonl").read_bytes(), folder / "a.jsonl"
    third = [i for i, byte in enumerate(whole) if byte == 10][2] + 1
    file.write_bytes(whole[: third + cut])
    outcome = ask(*documents, *QUESTIONS, "-o", "a.jsonl")
    assert outcome.code == 0, outcome.err
    assert file.read_bytes() == whole
    before = file.stat()
    assert ask(*documents, *QUESTIONS, "-o", "a.jsonl", "--ordered").code == 0
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_done_is_known_by_content(ask: Map, folder: Path, documents: list[str]) -> None:
    """Not by names: a renamed file is not asked again; one with other words, another question or recipe is."""
    file = folder / "a.jsonl"
    run = (*QUESTIONS, "-o", "a.jsonl")
    assert ask(*documents[:2], *run).code == 0
    (folder / "0.txt").rename(folder / "renamed.txt")
    assert ask("renamed.txt", "1.txt", *run).code == 0
    assert len(lines(file)) == 4
    (folder / "1.txt").write_text("House 1 is red. " * 9)
    assert ask("renamed.txt", "1.txt", *run).code == 0
    assert len(lines(file)) == 6
    assert ask("1.txt", *run, "-e", "Why?").code == 0
    assert len(lines(file)) == 7
    assert ask("1.txt", *run, "--kv-bits", "8").code == 0
    assert len(lines(file)) == 9


def test_failures_are_lines_and_are_retried_if_told(
    ask: Map, folder: Path, documents: list[str], validate: Validate
) -> None:
    file = folder / "a.jsonl"
    (folder / "bad.txt").write_bytes(b"\x00\x01\x02" * 99)
    args = (documents[0], "bad.txt", "gone.txt", documents[1], *QUESTIONS, "-o", "a.jsonl")
    outcome = ask(*args)
    assert outcome.code == 8
    assert "4 answers and 2 failures in a.jsonl" in outcome.err
    failed = [line for line in lines(file) if "error" in line]
    assert sorted(line["file"] for line in failed) == ["bad.txt", "gone.txt"]
    assert len(lines(file)) == 6
    for line in failed:
        validate(line)
    before = file.read_bytes()
    assert ask(*args).code == 8
    assert file.read_bytes() == before
    assert ask(*args, "--retry-failed").code == 8
    assert sorted(map(str, lines(file))) == sorted(map(str, map(json.loads, before.splitlines())))
    (folder / "gone.txt").write_text("It came back. " * 9)
    (folder / "bad.txt").write_text("Now it is a text. " * 9)
    assert ask(*args, "--ordered").code == 0
    assert [line["file"] for line in lines(file)] == [
        name for name in (documents[0], "bad.txt", "gone.txt", documents[1]) for _ in range(2)
    ]


def test_a_locked_pdf_among_good_ones_and_chosen_pages(ask: Map, folder: Path, documents: list[str]) -> None:
    """A PDF with a password is a failure of its own; ``--pages`` is another answer, ``--rebuild`` the same one."""
    pages = [Page(((72, 72, 12, f"Page {n} is about house {n} and its owner Anna."),)) for n in (1, 2, 3)]
    (folder / "good.pdf").write_bytes(pdf(pages))
    (folder / "locked.pdf").write_bytes(pdf(pages, password="secret"))
    args = ("good.pdf", "locked.pdf", documents[0], *QUESTIONS, "-o", "a.jsonl")
    outcome = ask(*args)
    assert outcome.code == 8
    errors = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "locked.pdf" in errors[0]
    found = lines(folder / "a.jsonl")
    assert [line["file"] for line in found if "error" in line] == ["locked.pdf"]
    assert len(found) == 5
    assert ask("good.pdf", *QUESTIONS, "-o", "a.jsonl", "--rebuild").code == 0
    assert lines(folder / "a.jsonl") == found, "it is done"
    assert ask("good.pdf", *QUESTIONS, "-o", "b.jsonl", "--rebuild").code == 0
    assert lines(folder / "b.jsonl") == [line for line in found if line["file"] == "good.pdf"]
    assert ask("good.pdf", *QUESTIONS, "-o", "a.jsonl", "--pages", "2").code == 0
    chosen = lines(folder / "a.jsonl")[len(found) :]
    whole = found[0]["document"]["tokens"]
    assert [line["document"]["tokens"] < whole for line in chosen] == [True, True]
    assert {quote["page"] for line in chosen for quote in line["quotes"]} == {2}


def test_a_file_that_vanishes_during_the_run_is_a_line(
    ask: Map, folder: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch, validate: Validate
) -> None:
    read, args = worker.read_task, (*documents[:3], *QUESTIONS, "-o", "a.jsonl", "--ordered")

    def read_and_delete(*given: Any) -> Any:
        document = read(*given)
        (folder / "1.txt").unlink(missing_ok=True)
        return document

    text = (folder / "1.txt").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(worker, "read_task", read_and_delete)
        outcome = ask(*args)
    assert outcome.code == 8
    errors = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "1.txt" in errors[0]
    found = lines(folder / "a.jsonl")
    assert [(line["file"], "error" in line) for line in found] == [
        ("0.txt", False), ("0.txt", False), ("1.txt", True), ("2.txt", False), ("2.txt", False)
    ]  # fmt: skip
    validate(found[2])
    (folder / "1.txt").write_bytes(text)
    assert ask(*args, "--retry-failed").code == 0
    again = lines(folder / "a.jsonl")
    assert [line["file"] for line in again if "answer" in line] == [n for n in documents[:3] for _ in range(2)]
    assert [line for line in again if line["file"] != "1.txt"] == [line for line in found if line["file"] != "1.txt"]


def test_images_are_read_by_ocr_if_told(ask: Map, folder: Path, engine: list[Any], documents: list[str]) -> None:  # noqa: F811
    (folder / "scan.png").write_bytes(png())
    args = ("scan.png", documents[0], "-e", "Who sat by the harbour?", "-o", "a.jsonl")
    plain = ask(*args)
    assert (plain.code, engine) == (8, [])
    assert "--ocr" in plain.err
    assert [line["file"] for line in lines(folder / "a.jsonl") if "error" in line] == ["scan.png"]
    outcome = ask(*args, "--ocr", "--ordered", "-o", "b.jsonl")
    assert outcome.code == 0, outcome.err
    assert len(engine) == 1
    scan, _ = lines(folder / "b.jsonl")
    assert scan["file"] == "scan.png"
    assert scan["quotes"][0]["text"] == "The old man sat by the harbour."


def test_an_ordered_run_sorts_what_others_wrote(ask: Map, folder: Path, documents: list[str]) -> None:
    file, back = folder / "a.jsonl", documents[::-1]
    assert ask(*back, *QUESTIONS, "-o", "a.jsonl").code == 0
    assert ask(*documents, *QUESTIONS, "-o", "a.jsonl", "--ordered").code == 0
    assert [line["file"] for line in lines(file)] == [name for name in documents for _ in range(2)]
    printed = ask(*documents, *QUESTIONS, "--ordered")
    assert printed.out == file.read_text()


def test_a_table_has_a_row_per_document(ask: Map, folder: Path, documents: list[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "s.json").write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"owner": {"const": "Anna"}, "age": {"enum": [40, 41]}},
                "required": ["owner", "age"],
                "additionalProperties": False,
            }
        )
    )
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 nonsense")
    args = (*documents, "bad.pdf", "-e", "Who?", "--schema", "s.json", "-n", "60", "--with-quotes")
    assert ask(*args, "--table", "t.csv", "--table", "t.parquet", "-o", "a.jsonl").code == 8
    with (folder / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["file", "owner", "owner_quote", "owner_page", "age", "age_quote", "age_page", "error"]
    assert list(rows[0]) == names
    assert [row["file"] for row in rows] == [*documents, "bad.pdf"]
    assert all("Anna" in row["owner_quote"] for row in rows[:-1])
    assert rows[-1]["error"]
    table = parquet.read_table(folder / "t.parquet").to_pylist()
    assert [row["owner"] for row in table] == [row["owner"] or None for row in rows]
    assert {row["age"] for row in table[:-1]} <= {40, 41}


@pytest.mark.parametrize(
    ("args", "code", "holds"),
    [
        (("-e", "Who?"), 2, ""),
        (("nothing-*.txt", "-e", "Who?"), 3, "nothing-*.txt"),
        (("0.txt",), 2, ""),
        (("-", "-e", "Who?"), 2, ""),
        (("0.txt", "-e", "Who?", "-o", "0.txt"), 2, "0.txt"),
        (("0.txt", "-e", "Who?", "-o", "nowhere/a.jsonl"), 2, "nowhere"),
        (("0.txt", "-e", "Who?", "-o", "1.txt"), 7, "1.txt"),
        (("0.txt", "-e", "Who?", "--table", "t.xls"), 2, "t.xls"),
        (("0.txt", "-e", "Who?", "--retry-failed"), 2, ""),
        (("0.txt", "-e", "Who?", "--with-quotes"), 2, ""),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    ask: Map, folder: Path, documents: list[str], args: tuple[str, ...], code: int, holds: str
) -> None:
    before = {name: (folder / name).read_bytes() for name in documents}
    outcome = ask(*args)
    assert outcome.code == code
    assert holds in outcome.err
    assert len([line for line in outcome.err.splitlines() if "error:" in line]) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.usefixtures("documents")
def test_files_named_twice_and_copies_are_asked_about_once(ask: Map, folder: Path) -> None:
    (folder / "copy.txt").write_bytes((folder / "0.txt").read_bytes())
    outcome = ask("0.txt", "0.txt", "copy.txt", *QUESTIONS, "-o", "a.jsonl")
    assert outcome.code == 0
    assert {line["file"] for line in lines(folder / "a.jsonl")} == {"0.txt"}
    assert "copy.txt" in outcome.err


def test_a_folder_and_a_pattern_are_their_files(ask: Map, documents: list[str]) -> None:
    for args in ((".",), ("[0-3].txt",)):
        printed = ask(*args, "-e", "Who?").out.splitlines()
        assert sorted(Path(json.loads(line)["file"]).name for line in printed) == documents


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    wide_model: Path, folder: Path, environment: dict[str, str], call: Call
) -> None:
    """A signal in the middle ends with 130; the file that the same command then completes is that of one run."""
    names = [f"{n}.txt" for n in range(6)]
    for name in names:
        (folder / name).write_text(f"House {name} is blue. " * 4)
    args = ["map", "-m", str(wide_model), *names, "-e", "Who?", "--quotes", "0", "-n", "60", "-o"]
    process = forked.Popen([*PROGRAM, *args, "a.jsonl"], cwd=folder, env=environment, stderr=subprocess.PIPE)
    file, end = folder / "a.jsonl", time.monotonic() + 300
    while not (file.exists() and file.stat().st_size) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert b"Traceback" not in error
    kept = file.read_bytes()
    assert 0 < kept.count(b"\n") < 6
    assert call(*args, "a.jsonl").code == 0
    assert file.read_bytes().startswith(kept)
    assert call(*args, "b.jsonl").code == 0
    assert file.read_bytes() == (folder / "b.jsonl").read_bytes()


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("files are locked on POSIX")
    first = AnswersFile(tmp_path / "a.jsonl")
    first.add({"key": "1", "answer": ""})
    with pytest.raises(Exception, match=r"a\.jsonl"):
        AnswersFile(tmp_path / "a.jsonl")
    first.close()


RECORDS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.text(max_size=20), st.booleans()),
    min_size=1,
    max_size=9,
    unique_by=lambda r: r[0],
)


@settings(max_examples=15)
@given(RECORDS, st.data())
def test_a_file_cut_at_any_byte_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str, bool]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    file = AnswersFile(path)
    for key, text, failed in records:
        file.add({"schema": "kvcli/1", "key": key, **({"error": text} if failed else {"answer": text})})
    file.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[: whole[:cut].rfind(b"\n") + 1]
    again = AnswersFile(path)
    assert path.read_bytes() == kept
    assert again.repaired == (len(kept) < cut)
    last = {json.loads(line)["key"]: json.loads(line) for line in kept.splitlines()}
    assert {record["key"]: record for record in again.records(list("abcdef"))} == last
    assert set(again.failed) == {key for key, record in last.items() if "error" in record}
    order = data.draw(st.permutations(sorted(last)))
    again.sort(order)
    assert [record["key"] for record in again.records(order)] == order
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == order
    again.close()


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"schema": "kvcli/1", "key": "1"}\n{"sch\n{"schema": "kvcli/1", "key": "2"}\n')
    before = path.read_bytes()
    with pytest.raises(DamagedError, match="line 2"):
        AnswersFile(path)
    assert path.read_bytes() == before


def test_a_plan_counts_what_is_left_and_asks_nothing(ask: Map, folder: Path, documents: list[str]) -> None:
    assert ask(*documents[:1], *QUESTIONS, "-o", "a.jsonl").code == 0
    before = (folder / "a.jsonl").read_bytes()
    planned = ask(*documents, *QUESTIONS, "-o", "a.jsonl", "--plan")
    assert planned.code == 0
    assert (folder / "a.jsonl").read_bytes() == before
    assert ask(*documents, *QUESTIONS, "-o", "a.jsonl").code == 0
    tokens = {line["file"]: line["document"]["tokens"] for line in lines(folder / "a.jsonl")}
    assert f"{sum(tokens[name] for name in documents[1:]):,}" in planned.out
    assert "3 documents · 6 answers" in planned.out


def test_a_web_address_is_fetched_once(ask: Map, call: Call, wide_model: Path, folder: Path, site: Site) -> None:  # noqa: F811
    url = site.page("/house", b"<p>House 9 is blue. <p>Its owner is Anna.", "text/html")
    done = ask(url, f"{site.at}/none", *QUESTIONS, "-o", "a.jsonl", "--allow-private", "--no-cache")
    assert done.code == 8
    assert site.asked == ["/house", "/none"]
    *answers, failed = sorted(lines(folder / "a.jsonl"), key=lambda line: "error" in line)
    assert [line["file"] for line in answers] == [url, url]
    assert "404" in failed["error"]["message"]
    each = call(
        "ask", "-m", wide_model, *POLICY, "--each", "--json", "--no-cache", "--allow-private", url, "Who is there?"
    )
    assert each.code == 0, each.err
    assert json.loads(each.out.splitlines()[0])["answer"] == answers[0]["answer"]
    assert ask(url, *QUESTIONS, "-o", "b.jsonl", "--no-cache").code == 8  # a private address
