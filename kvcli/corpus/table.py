"""Answers as a table: one row per document, one column per question or per field of a JSON answer."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcli.corpus.task import DocumentTask, Question
from kvcli.errors import ResourceError, UsageError
from kvcli.utils import files

SUFFIXES = (".csv", ".parquet")


def check(path: Path) -> None:
    """Refuse a table that cannot be written, before anything is asked. Raises ``UsageError`` or ``ResourceError``."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--table {path}: the name must end in .csv or .parquet", "--table answers.csv")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory, or its directory does not exist", "--table FILE")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ResourceError("Parquet needs pyarrow", "pip install 'kvcli[parquet]', or --table FILE.csv") from None


def cells(answer: str) -> dict[str, Any]:
    """The fields of a JSON object, objects in it as ``outer.inner``; nothing if the answer is something else."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return _flat(found) if isinstance(found, dict) else {}


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    out = dict[str, Any]()
    for name, inner in value.items():
        if isinstance(inner, dict):
            out |= _flat(inner, f"{before}{name}.")
        else:
            out[before + name] = json.dumps(inner, ensure_ascii=False) if isinstance(inner, list) else inner
    return out


def rows(
    tasks: Sequence[DocumentTask], records: Iterable[Mapping[str, Any]], questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """One row per document, in the order of the tasks; documents without any line are left out.

    Args:
        tasks: all documents of the run with all questions.
        records: lines of answers and failures, in any order.
        questions: as asked. If there are several, columns begin with the question's id or number.
    """
    where: dict[str, tuple[str, Question | None]]
    where = {key: (task.name, q) for task in tasks for key, q in zip(task.keys, task.questions, strict=True)}
    where |= {task.failure_key: (task.name, None) for task in tasks}
    names = {question: str(question.id or n) if len(questions) > 1 else "" for n, question in enumerate(questions, 1)}
    found = {task.name: dict[str, Any]() for task in tasks}
    for record in records:
        if record["key"] not in where:
            continue
        file, question = where[record["key"]]
        row, name = found[file], "" if question is None else names[question]
        if "error" in record:
            row["error"] = record["error"]["message"]
            continue
        values = cells(record["answer"]) or {"answer": record["answer"]}
        quotes = record.get("fields") or {}
        for field, value in values.items():
            column = f"{name}.{field}" if name else field
            row[column] = value
            if record.get("fields") is not None:
                quote = quotes.get(field) or {}
                row |= {f"{column}_quote": quote.get("quote"), f"{column}_page": quote.get("page")}
    return [{"file": file, **row} for file, row in found.items() if row]


def write(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as CSV (UTF-8, RFC 4180) or Parquet; the file is replaced as a whole."""
    columns = list(dict.fromkeys(["file", *(name for row in table for name in row if name != "error")]))
    if any("error" in row for row in table):
        columns.append("error")
    with files.atomic_write(path) as temporary:
        if path.suffix == ".csv":
            with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([[_text(row.get(name)) for name in columns] for row in table])
        else:
            _parquet(temporary, columns, table)
        temporary.chmod(0o644)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _parquet(path: Path, columns: Sequence[str], table: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    arrays = {}
    for name in columns:
        values = [row.get(name) for row in table]
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # of several kinds
            arrays[name] = pyarrow.array([None if value is None else _text(value) for value in values])
    parquet.write_table(pyarrow.table(arrays), path)
