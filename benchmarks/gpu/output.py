"""Rows of a step, kept as soon as they are measured: a step that ends early loses none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROWS, STEP = "KVCLI_GPU_ROWS", "KVCLI_GPU_STEP"
"""Environment variables: the file of rows, and the name of the step that writes to it."""


def record(row: dict[str, Any]) -> None:
    """Print a row, and append it to the file of rows, if there is one, under the name of the step."""
    text = json.dumps({"step": os.environ.get(STEP, ""), **row}, ensure_ascii=False)
    print(text, flush=True)
    if name := os.environ.get(ROWS):
        with Path(name).open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def recorded(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, the last of each step and key, without a last line that was cut off."""
    rows: dict[Any, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.pop(known := (row["step"], row.get("key")), None)
        rows[known] = row
    return list(rows.values())


def failed(row: dict[str, Any]) -> bool:
    """Whether a row says that something went wrong, so that a later run tries it again."""
    return "error" in row or "check_error" in row or row.get("ok") is False or bool(row.get("code"))


def measured(key: str) -> bool:
    """Whether an earlier run of this step has the row of this ``key``, and it did not fail."""
    name, step = os.environ.get(ROWS), os.environ.get(STEP, "")
    rows = recorded(Path(name)) if name else []
    return any(row.get("key") == key and row["step"] == step and not failed(row) for row in rows)
