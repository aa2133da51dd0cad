"""Dataset files of ``--data``: JSON or JSON Lines, optionally gzipped, by name or in a directory.

A row is recognized by its fields, never by the file's name; :mod:`kvcli.evaluate.tasks.public_benchmarks` defines the
shapes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvcli.errors import InputError
from kvcli.evaluate.case import Case, CaseSpec, PassagePool, PoolPassage
from kvcli.evaluate.tasks import public_benchmarks

_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True)
class Data:
    """The rows of all files.

    Attributes:
        rows: file name without endings, index of the row, row.
        sha256: digest of the files' bytes in order.
    """

    rows: tuple[tuple[str, int, dict[str, Any]], ...]
    sha256: str


def read(names: Sequence[str]) -> Data:
    """Read files and the files in directories.

    Raises:
        InputError: a file is missing or invalid.
    """
    rows: list[tuple[str, int, dict[str, Any]]] = []
    found = hashlib.sha256()
    for path in [file for name in names for file in _files(Path(name))]:
        try:
            data = path.read_bytes()
            found.update(data)
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", "another file for --data") from None
        stem = next(path.name.removesuffix(end) for end in reversed(_ENDINGS) if path.name.endswith(end))
        rows += [(stem, n, row) for n, row in enumerate(_rows(text, path))]
    return Data(tuple(rows), found.hexdigest())


def jobs(data: Data, cases: int | None) -> list[CaseSpec]:
    """List the cases of benchmark files.

    Args:
        data: their rows.
        cases: maximum number of cases per task; ``None`` for all.

    Raises:
        InputError: rows of an unknown shape; lists their fields.
    """
    taken: Counter[str] = Counter()
    made: list[CaseSpec] = []
    for stem, place, row in data.rows:
        shape = public_benchmarks.shape(row)
        if shape is None:
            fields = ", ".join(list(row)[:8]) or "none"
            raise InputError(
                f"row {place + 1} of {stem} is of no benchmark known here; its fields are: {fields}",
                "see docs/evaluate.md for the formats that are read",
            )
        task = shape.task(stem, row)
        if cases is None or taken[task] < cases:
            made.append(CaseSpec(task, None, taken[task], partial(_make, shape, stem, place, row)))
        taken[task] += 1
    return made


def passages(data: Data) -> PassagePool:
    """Collect the passages for multi-document QA.

    Raises:
        InputError: rows are not passages, or there are too few.
    """
    found: dict[tuple[str, str], PoolPassage] = {}
    for stem, place, row in data.rows:
        made = public_benchmarks.passage(row)
        if made is None:
            raise InputError(
                f"row {place + 1} of {stem} is not a passage",
                'JSON Lines of {"title": …, "text": …, "question": …, "answers": […]}, or a SQuAD file',
            )
        key = (made.title, made.text)
        before = found[key].asked if key in found else ()
        found[key] = PoolPassage(made.title, made.text, (*before, *made.asked))
    return PassagePool(tuple(found.values()))


def _make(shape: public_benchmarks.RowShape, stem: str, place: int, row: dict[str, Any]) -> Case:
    try:
        return shape.case(stem, row)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"row {place + 1} of {stem} is damaged: {type(error).__name__}: {error}") from None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.endswith(_ENDINGS) and p.is_file())
        if not found:
            raise InputError(f"there is no .jsonl, .json or .gz of these in {path}", f"ls {path}")
        return found
    if not path.exists():
        raise InputError(f"{path} does not exist", f"ls {path.parent}")
    if not path.name.endswith(_ENDINGS):
        raise InputError(f"{path} is none of {', '.join(_ENDINGS)}", "convert it to JSON Lines")
    return [path]


def _rows(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the rows of JSON Lines, a SQuAD file's paragraphs, the items of a list, or a single object."""
    try:
        whole = json.loads(text)
    except ValueError:
        found = []
        for n, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"line {n} of {path} is not JSON: {error}", "one JSON object per line") from None
    else:
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            found = [
                {**paragraph, "title": article.get("title", "")}
                for article in whole["data"]
                for paragraph in article["paragraphs"]
            ]
        else:
            found = whole if isinstance(whole, list) else [whole]
    if not found or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{path} has no rows that are JSON objects", "one JSON object per line")
    return found
