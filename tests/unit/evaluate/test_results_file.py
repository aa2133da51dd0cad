"""The file of finished cases: it resumes, and refuses what is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcli.errors import DamagedError, UsageError
from kvcli.evaluate.report import cells, name, table
from kvcli.evaluate.results_file import Result, ResultsFile

SETTINGS = {"model": "tiny", "seed": 0, "document": None}


def row(case: int = 0, *, scores: tuple[float, ...] = (1.0,), length: int | None = 4096, look: int = 0) -> Result:
    found, gold, tags = list(scores), [["x"]], {"k": "v"}
    return Result(
        "needle", length, "full", case, None, 4000, 4000, 1, found, ["contains"], ["é"], gold, tags, look=look
    )


def test_rows_come_back(tmp_path: Path) -> None:
    first = ResultsFile(tmp_path / "a.jsonl", SETTINGS)
    for case in range(3):
        first.add(row(case))
    again = ResultsFile(tmp_path / "a.jsonl", SETTINGS)
    assert again.done == first.done
    again.add(row(3))
    assert len(ResultsFile(tmp_path / "a.jsonl", SETTINGS).done) == 4


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_a_kill_tore_is_done_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    rows = ResultsFile(path, SETTINGS)
    rows.add(row(0))
    rows.add(row(1))
    path.write_bytes(path.read_bytes()[:-cut])
    again = ResultsFile(path, SETTINGS)
    assert set(again.done) == {row(0).key}
    again.add(row(1))
    assert ResultsFile(path, SETTINGS).done == rows.done


@pytest.mark.parametrize(("field", "value"), [("model", "other"), ("seed", 1), ("document", "abc")])
def test_a_file_of_other_settings_is_refused(tmp_path: Path, field: str, value: object) -> None:
    ResultsFile(tmp_path / "a.jsonl", SETTINGS).add(row())
    with pytest.raises(DamagedError, match=rf"another {field}: .* there, {value} here"):
        ResultsFile(tmp_path / "a.jsonl", {**SETTINGS, field: value})


@pytest.mark.parametrize("text", ["hello\n", '{"a": 1}\n', "[]\n", '{"schema": "kvcli.eval/1", "settings": {}}\n3\n'])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DamagedError, match=r"another name|results file of kvcli eval|another model"):
        ResultsFile(path, SETTINGS)
    assert path.read_text() == text


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        ResultsFile(tmp_path, SETTINGS)
    with pytest.raises(UsageError, match="there is no directory"):
        ResultsFile(tmp_path / "no" / "a.jsonl", SETTINGS)


def test_a_cell_sums_up_its_rows() -> None:
    order = [("needle", "full", 4096, 0), ("needle", "full", 20000, 0), ("needle", "full", 4096, 3)]
    found = cells([row(0), row(1, scores=(0.0,)), row(0, length=20000), row(0, look=3)], [], order)
    numbers = found[0].numbers()
    assert (numbers["n"], numbers["mean"], numbers["interval"], numbers["length"]) == (2, 0.5, "wilson", 4096)
    assert numbers["by"] == {"k": {"v": {"n": 2, "mean": 0.5}}}
    columns, body, notes = table(found)
    assert columns == ["task", "recipe", "4K", "20,000"]
    assert body == [
        ["needle", "full", "50.0 [9–91] n=2", "100.0 [21–100] n=1"],
        ["needle", "full · reread 3", "100.0 [21–100] n=1", ""],
    ]
    assert notes == []
    json.dumps(numbers)


def test_lengths_for_a_person() -> None:
    assert [name(n) for n in (None, 1024, 2**20, 1000, 5000)] == ["own length", "1K", "1M", "1,000", "5,000"]
