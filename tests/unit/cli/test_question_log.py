"""The log of questions and answers: what is found again, who can read it, and what damage does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvcli.cli import question_log
from kvcli.cli.options import RunOptions
from kvcli.cli.question_log import QuotePlace
from kvcli.documents import Options
from kvcli.errors import DamagedError, InputError
from kvcli.planning.budget import Budget


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def record(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer, "finish_reason": "stop", "model": {"name": "tiny"}}


def add(question: str, answer: str = "Yes.", files: tuple[str, ...] = ("a.txt",), **more: Any) -> None:
    previous = more.pop("previous", None)
    options = RunOptions(**more)
    assert (
        question_log.add(options, files, record(question, answer), [QuotePlace("a.txt", 3, 7, "q")], previous) is None
    )


def test_what_is_logged_is_found() -> None:
    assert question_log.last(5) == []
    with pytest.raises(InputError):
        question_log.latest()
    for text in ("one 100% sure", "two_three", "four \ud800"):
        add(text)
    assert [e.question for e in question_log.last(2)] == ["two_three", "four ?"]
    assert [e.question for e in question_log.last(9, ["100%"])] == ["one 100% sure"]
    assert [e.question for e in question_log.last(9, ["two_", "YES"])] == ["two_three"]
    assert question_log.last(9, ["t_o"]) == []
    entry = question_log.latest()
    assert entry.places == (QuotePlace("a.txt", 3, 7, "q"),)
    assert entry.files == ("a.txt",)
    assert question_log.path().stat().st_mode & 0o777 == 0o600
    assert question_log.clear() == 3
    assert question_log.last(5) == []


def test_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_log, "MOST", 3)
    for i in range(5):
        add(str(i))
    assert [e.question for e in question_log.last(9)] == ["2", "3", "4"]


def test_a_damaged_log_is_named_and_can_be_cleared() -> None:
    add("one")
    question_log.path().write_bytes(b"SQLite format 3\0 but no more" * 40)
    with pytest.raises(DamagedError):
        question_log.last(1)
    said = question_log.add(RunOptions(), [], record("q", "a"), [], None)
    assert said is not None
    assert "not logged" in said
    question_log.clear()
    add("two")
    assert question_log.latest().id == 1


def test_a_continuation_takes_over_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Options(pages=((1, 2),))
    add("one", model="tiny", policy="keydiff", budget=Budget(64, "units"), reading=reading, raw=True)
    add("two", "No.", previous=1, model="tiny", budget=Budget(64, "units"), reading=reading)
    entry = question_log.latest()
    options, files = question_log.continued(RunOptions(policy="snapkv"), entry, ())
    assert (options.model, options.policy, options.budget) == ("tiny", "snapkv", Budget(64, "units"))
    assert options.reading == reading
    assert options.history == (("one", "Yes."), ("two", "No."))
    assert options.previous == 2
    assert files == ("a.txt",)
    assert question_log.continued(RunOptions(), entry, ("b.txt",))[1] == ("b.txt",)
    monkeypatch.chdir(tmp_path)
    assert question_log.continued(RunOptions(), entry, ())[1] == (str(tmp_path / "here" / "a.txt"),)
    monkeypatch.setattr(question_log, "HISTORY", 7)
    assert question_log.history(entry) == (("two", "No."),)


def test_standard_input_is_gone() -> None:
    add("one", files=("stdin",))
    with pytest.raises(InputError):
        question_log.continued(RunOptions(), question_log.latest(), ())
