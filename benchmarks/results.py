"""Write the tables and plots of ``docs/results/`` from the rows in ``docs/results/data/*.jsonl``.

    python -m benchmarks.results

Each row is one figure, with its ``table``, ``n``, ``command``, ``date`` and ``machine`` (benchmarks/provenance.py;
benchmarks/rows.py makes rows from ``kvcli eval``). A page says in a comment what it shows. The lines up to
``<!-- end -->`` are written here:

    <!-- table NAME: recipe × length = rate -->       one row per recipe, one column per length, rates in the cells
    <!-- table NAME: tokens; peak_mib = peak, MiB --> one row per row, one column per field, with its heading
    <!-- commands NAME NAME -->                       the commands of these tables
    <!-- machines -->                                 the machines, by their letters

A field is the name of a field, with an optional format (``alike:.3f``, ``peak_bytes:MiB``; ``kl:span.3f`` adds its
interval from ``kl_low`` to ``kl_high``), or ``rate`` (right of ``n``
in per cent ± half the width of its 95 % interval) or ``count`` ("right of n"). Unknown names are errors, but a
table ``NAME?`` may have no rows yet.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvcli.evaluate.intervals import wilson

ROOT = Path(__file__).parent.parent / "docs" / "results"
PROVENANCE = ("n", "command", "date", "machine")
CODE = ("recipe", "storage", "policy")
MISSING = "–"

Row = dict[str, Any]
Tables = dict[str, list[Row]]

_DATE = re.compile(r"\d{4}-\d\d-\d\d(/\d{4}-\d\d-\d\d)?")
_DIRECTIVE = re.compile(r"^<!-- (table|commands|machines)\b *(.*?) *-->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
_RECIPE = re.compile(r"\w+(\([^)]*\))?(\+\w+(\([^)]*\))?)*")


def read(folder: Path) -> tuple[Tables, dict[str, Row]]:
    """All rows by table, and the machines by name.

    Raises:
        ValueError: a row lacks a field of :data:`PROVENANCE`, or names a machine that ``machines.jsonl`` does not have.
    """
    machines = {row["machine"]: row for row in _rows(folder / "machines.jsonl")}
    tables: Tables = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem == "machines":
            continue
        for row in _rows(path):
            if missing := [name for name in ("table", *PROVENANCE) if name not in row]:
                raise ValueError(f"{path.name}: a row has no {', '.join(missing)}: {row}")
            if row["machine"] not in machines or not _DATE.fullmatch(row["date"]) or row["n"] < 1:
                raise ValueError(f"{path.name}: unknown machine, wrong date or n below 1: {row}")
            tables.setdefault(row["table"], []).append(row)
    return tables, machines


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def interval(row: Row) -> tuple[float, float, float]:
    """Mean, low and high of a row in per cent: its own interval, or Wilson's 95 % for ``right`` of ``n``."""
    if "low" in row:
        return row.get("mean") or 100 * row["right"] / row["questions"], row["low"], row["high"]
    low, high = wilson(row["right"], row["n"])
    return 100 * row["right"] / row["n"], 100 * low, 100 * high


def cell(row: Row, field: str, usual: int) -> str:
    """One field of a row as text; a rate names its ``n`` if it is not the usual one of the table."""
    name, _, form = field.partition(":")
    if name == "rate":
        mean, low, high = interval(row)
        return f"{mean:.0f} ± {(high - low) / 2:.0f}" + ("" if row["n"] == usual else f" (n = {row['n']})")
    if name == "count":
        return f"{row['right']} of {row.get('questions', row['n'])}"
    if name not in row:
        return MISSING
    value = row[name]
    if isinstance(value, str):
        return _RECIPE.sub(lambda match: f"`{match[0]}`", value, count=1) if name in CODE else value
    if form == "MiB":
        return f"{value / 2**20:,.0f}"
    if form.startswith("span"):
        low, high = (f"{row[f'{name}_{end}']:{form[4:]}}" for end in ("low", "high"))
        return f"{value:{form[4:]}} [{low}–{high}]"
    return f"{value:{form}}" if form else f"{value:,}"


def table(name: str, shape: str, tables: Tables, machines: dict[str, Row]) -> str:
    """The Markdown of one table and a line with its ``n``, dates and machines."""
    rows = _named(name, tables)
    usual = Counter(row["n"] for row in rows).most_common(1)[0][0]
    if pivot := re.fullmatch(r"(\w+) × (\w+) = ([\w:.]+)", shape):
        down, across, field = pivot.groups()
        _check(name, rows, [down, across, field])
        columns = list(dict.fromkeys(row[across] for row in rows))
        cells: dict[str, dict[Any, str]] = {}
        for row in rows:
            line = cells.setdefault(cell(row, down, usual), {})
            if row[across] in line:
                raise ValueError(f"two rows of the table {name} have {down} {row[down]} and {across} {row[across]}")
            line[row[across]] = cell(row, field, usual)
        heads = [c if isinstance(c, str) else f"{c:,}" for c in columns]
        lines = [[first, *(by.get(c, MISSING) for c in columns)] for first, by in cells.items()]
        body = [["", *heads], *lines]
    else:
        pairs = [part.partition("=") for part in shape.split(";")]
        fields = [field.strip() for field, _, _ in pairs]
        _check(name, rows, fields)
        body = [
            [(head or field.partition(":")[0]).strip() for field, _, head in pairs],
            *([cell(r, f, usual) for f in fields] for r in rows),
        ]
    body.insert(1, ["---"] * len(body[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in body) + f"\n\n{source(rows, usual, machines)}"


def _named(name: str, tables: Tables) -> list[Row]:
    if name not in tables:
        raise ValueError(f"there is no table {name}; there are {', '.join(sorted(tables))}")
    return tables[name]


def _check(name: str, rows: list[Row], fields: Iterable[str]) -> None:
    known = {key for row in rows for key in row} | (
        {"rate", "count"} if "right" in rows[0] or "mean" in rows[0] else set()
    )
    for field in fields:
        if field.partition(":")[0] not in known:
            raise ValueError(f"the table {name} has no field {field}; it has {', '.join(sorted(known))}")


def source(rows: list[Row], usual: int, machines: dict[str, Row]) -> str:
    """Where a table comes from: cases, dates and machines."""
    counts = {row["n"] for row in rows}
    cases = "One run each" if counts == {1} else f"n = {usual}" + (" unless given" if len(counts) > 1 else "")
    dates = sorted({part for row in rows for part in row["date"].split("/")})
    labels = sorted({machines[row["machine"]]["label"] for row in rows})
    return f"*{cases}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; machine {' and '.join(labels)}.*"


def commands(names: list[str], tables: Tables) -> str:
    """The commands of tables, each once."""
    found = dict.fromkeys(row["command"] for name in names for row in _named(name, tables))
    return "```sh\n" + "\n".join(found) + "\n```"


def fill(page: str, tables: Tables, machines: dict[str, Row]) -> str:
    """A page with everything between its directives and ``<!-- end -->`` written anew."""

    def write(match: re.Match[str]) -> str:
        kind, words = match[1], match[2]
        name, _, shape = words.partition(":")
        if name.endswith("?") and (name := name[:-1]) not in tables:
            text = "Not measured yet."
        elif kind == "table":
            text = table(name.strip(), shape.strip(), tables, machines)
        elif kind == "commands":
            text = commands(words.replace("?", "").split(), tables)
        else:
            text = "\n".join(f"- **{row['label']}**: {row['text']}." for row in machines.values())
        return f"<!-- {' '.join(filter(None, (kind, words)))} -->\n{text}\n<!-- end -->"

    return _DIRECTIVE.sub(write, page)


def main() -> None:
    from benchmarks.plots import PLOTS, draw

    tables, machines = read(ROOT / "data")
    for path in sorted(ROOT.glob("*.md")):
        path.write_text(fill(path.read_text(), tables, machines))
    for name in PLOTS:
        draw(name, tables, ROOT / f"{name}.svg")


if __name__ == "__main__":
    main()
