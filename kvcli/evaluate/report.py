"""Summary of results: one cell per task, recipe and length, as numbers and as a text table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcli.evaluate.intervals import Estimate, estimate
from kvcli.evaluate.results_file import Result

if TYPE_CHECKING:
    from kvcli.evaluate.run import Skipped

AS_IS = "own length"
"""Heading of texts of their own length."""


@dataclass
class Cell:
    """One task under one recipe at one length, with one number of re-read passages.

    Attributes:
        rows: the finished cases.
        reasons: one reason per skipped case.
    """

    task: str
    recipe: str
    length: int | None
    look: int = 0
    rows: list[Result] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def reader(self) -> str:
        """The recipe, and the number of re-read passages, if any."""
        return f"{self.recipe} · reread {self.look}" if self.look else self.recipe

    @property
    def estimate(self) -> Estimate | None:
        """Mean and interval; ``None`` without results."""
        return estimate([row.scores for row in self.rows]) if self.rows else None

    def by_tag(self) -> dict[str, dict[str, dict[str, float | int]]]:
        """Map tag and value to the number of cases and their mean."""
        found: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            for tag, value in row.tags.items():
                found[tag][value].append(row.scores)
        return {
            tag: {
                value: {"n": len(cases), "mean": round(estimate(cases).mean, 4)}
                for value, cases in sorted(values.items())
            }
            for tag, values in found.items()
        }

    def numbers(self) -> dict[str, Any]:
        """Return the cell as JSON: means and intervals in [0, 1], seconds and tokens summed."""
        found, rows = self.estimate, self.rows
        return {
            "task": self.task,
            "recipe": self.recipe,
            "length": self.length,
            "look_again": self.look,
            "n": len(rows),
            "questions": sum(len(row.scores) for row in rows),
            "mean": None if found is None else round(found.mean, 4),
            "low": None if found is None or found.low is None else round(found.low, 4),
            "high": None if found is None or found.high is None else round(found.high, 4),
            "interval": None if found is None else found.interval,
            "metrics": sorted({name for row in rows for name in row.metrics}),
            "budget": rows[0].budget if rows else None,
            "kept": max((row.kept for row in rows), default=None),
            "bits": rows[0].bits if rows else None,
            "device_bytes": sum(row.device_bytes or 0 for row in rows),
            "host_bytes": sum(row.host_bytes or 0 for row in rows),
            "tokens": sum(row.tokens for row in rows),
            "read_s": round(sum(row.read_s for row in rows), 2),
            "answer_s": round(sum(row.answer_s for row in rows), 2),
            "by": self.by_tag(),
            "skipped": {"n": len(self.reasons), "reason": self.reasons[0] if self.reasons else None},
        }


def cells(
    rows: Iterable[Result], skipped: Iterable[Skipped], order: Sequence[tuple[str, str, int | None, int]]
) -> list[Cell]:
    """Group results into cells.

    Args:
        rows: finished cases.
        skipped: cases that do not fit.
        order: task, recipe, length and number of passages of each cell, in report order.
    """
    found = {key: Cell(*key) for key in order}
    for row in rows:
        found[row.task, row.recipe, row.length, row.look].rows.append(row)
    for skip in skipped:
        key = skip.key
        found[key.task, key.recipe, key.length, key.look].reasons.append(skip.problem.message)
    return list(found.values())


def table(found: Sequence[Cell]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return headings, rows and footnotes: one column per length, in per cent."""
    lengths = sorted({cell.length for cell in found}, key=lambda n: (n is not None, n or 0))
    lines: dict[tuple[str, str], dict[int | None, Cell]] = defaultdict(dict)
    for cell in found:
        lines[cell.task, cell.reader][cell.length] = cell
    body = [[task, reader, *(_text(by[n]) if n in by else "" for n in lengths)] for (task, reader), by in lines.items()]
    notes = [
        f"{cell.task} · {cell.reader} · {name(cell.length)}: {len(cell.reasons)} of"
        f" {len(cell.reasons) + len(cell.rows)} cases skipped: {cell.reasons[0]}"
        for cell in found
        if cell.reasons
    ]
    return ["task", "recipe", *map(name, lengths)], body, notes


def name(length: int | None) -> str:
    """Format a length: ``4K`` for multiples of 1,024, else its digits."""
    if length is None:
        return AS_IS
    if length % 2**20 == 0:
        return f"{length >> 20}M"
    return f"{length >> 10}K" if length % 1024 == 0 else f"{length:,}"


def _text(cell: Cell) -> str:
    found = cell.estimate
    if found is None:
        return "skipped" if cell.reasons else "–"
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:.0f}–{100 * found.high:.0f}]"
    return f"{100 * found.mean:.1f}{interval} n={len(cell.rows)}"
