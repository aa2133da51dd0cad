"""The file of ``--out``: one line of settings, then one line per finished case; a later run continues it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from kvcli.errors import DamagedError, InputError, UsageError

SCHEMA = "kvcli.eval/1"


class Key(NamedTuple):
    """The identity of a result."""

    task: str
    length: int | None
    recipe: str
    look: int
    case: int


@dataclass(frozen=True)
class Result:
    """One case under one recipe.

    Attributes:
        task, length, recipe, case: its identity; ``length`` is as requested, ``None`` for a text of its own length.
        budget: maximum units kept, ``None`` for all.
        tokens: tokens read.
        kept: units per KV head.
        readings: number of prefills of the text.
        scores: one per question.
        metrics: their names.
        answers: the model's answers.
        gold: right answers, per question.
        tags: for breakdowns.
        read_s, answer_s: seconds.
        heads: digest of the retaining heads, if the recipe uses them.
        look: number of re-read passages.
        bits: effective bits of a kept number, scales included.
        device_bytes, host_bytes: of the kept units, index and staging included.
        kl, gold_nll: of the task ``fidelity``, per question, in nats. The first is the mean KL per token of the answer,
            the second the mean loss per token of the right answer.
        probability: that the text answers, as quotes are looked up; ``None`` for other tasks.
    """

    task: str
    length: int | None
    recipe: str
    case: int
    budget: int | None
    tokens: int
    kept: int
    readings: int
    scores: list[float]
    metrics: list[str]
    answers: list[str]
    gold: list[list[str]]
    tags: dict[str, str] = field(default_factory=dict)
    read_s: float = 0.0
    answer_s: float = 0.0
    heads: str | None = None
    bits: float | None = None
    device_bytes: int | None = None
    host_bytes: int | None = None
    look: int = 0
    probability: float | None = None
    kl: list[float] | None = None
    gold_nll: list[float] | None = None

    @property
    def key(self) -> Key:
        return Key(self.task, self.length, self.recipe, self.look, self.case)


class ResultsFile:
    """Finished cases, in memory and optionally in a file.

    Args:
        path: the file, which is continued if it exists.
        settings: common to all rows of a file; JSON values.

    Raises:
        UsageError: the path is unusable.
        DamagedError: the file has other settings, or is not a results file.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.done: dict[Key, Result] = {}
        if path is None:
            return
        if path.is_dir():
            raise UsageError(f"--out {path} is a directory", f"--out {path / 'eval.jsonl'}")
        if not path.parent.is_dir():
            raise UsageError(f"--out {path}: there is no directory {path.parent}", f"mkdir -p {path.parent}")
        if path.exists() and path.stat().st_size:
            self._load(path)

    def add(self, row: Result) -> None:
        """Add a row; it is on disk when this returns.

        Raises:
            InputError: the file cannot be written.
        """
        self.done[row.key] = row
        if self.path is None:
            return
        try:
            fresh = not self.path.exists() or not self.path.stat().st_size
            with self.path.open("a", encoding="utf-8") as file:
                if fresh:
                    file.write(_line({"schema": SCHEMA, "settings": self.settings}))
                file.write(_line(asdict(row)))
                file.flush()
                os.fsync(file.fileno())
        except PermissionError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}", "another FILE for --out") from None

    def _load(self, path: Path) -> None:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedError(f"cannot read {path}: {error}", "another FILE for --out") from None
        whole, _, torn = text.rpartition("\n")
        try:
            head, *rest = [json.loads(line) for line in whole.splitlines()]
            if not isinstance(head, dict) or head.get("schema") != SCHEMA:
                raise ValueError("its first line is not that of an evaluation")
            names = {f.name for f in fields(Result)}
            rows = [Result(**{k: v for k, v in row.items() if k in names}) for row in rest]
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"{path} is not a results file of kvcli eval: {error}", "another FILE for --out"
            ) from None
        theirs = head.get("settings", {})
        for name in [*self.settings, *(k for k in theirs if k not in self.settings)]:
            if theirs.get(name) != self.settings.get(name):
                raise DamagedError(
                    f"{path} was made with another {name}: {_show(theirs.get(name))} there,"
                    f" {_show(self.settings.get(name))} here",
                    "another name for --out, or the settings of that file",
                )
        self.done = {row.key: row for row in rows}
        if torn:  # a run was killed within a line: repeat that case
            with path.open("r+b") as file:
                file.truncate(len(whole.encode()) + 1)


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
