"""Turn the cases that ``kvcli eval … --out FILE`` keeps into rows for ``docs/results/data/``.

    kvcli eval needle book.txt --lengths 4K --policy locret --policy full --reread 0,3 --out needle.jsonl
    python -m benchmarks.rows needle.jsonl --table needle --command "kvcli eval …" >> docs/results/data/quality.jsonl

One row per task, recipe, number of reread passages and length. Questions that are right or wrong, one per text, give
``right`` of ``n``; everything else gives the mean with its bootstrap interval, in per cent. Cases of the task
``fidelity`` give the means of ``kl`` and ``loss`` in nats and of ``same`` in per cent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from kvcli.evaluate.intervals import estimate


def fidelity(cases: list[dict[str, Any]], table: str, command: str) -> list[dict[str, Any]]:
    """Rows of the task ``fidelity``, by budget and then by divergence."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for case in cases:
        cells.setdefault((case["recipe"], case["length"]), []).append(case)
    rows = []
    for (recipe, length), found in cells.items():
        row = {"table": table, "recipe": recipe, "length": length, "budget": found[0]["budget"]}
        row["questions"] = sum(len(case["scores"]) for case in found)
        for name, key, factor, digits in (("kl", "kl", 1, 4), ("same", "scores", 100, 1), ("loss", "gold_nll", 1, 2)):
            values = estimate([case[key] for case in found], shares=name == "same")
            row[name] = round(factor * values.mean, digits)
            row[f"{name}_low"], row[f"{name}_high"] = (
                None if v is None else round(factor * v, digits) for v in (values.low, values.high)
            )
        row["mib"] = round(max(case["device_bytes"] for case in found) / 2**20, 1)
        rows.append({k: v for k, v in row.items() if v is not None} | provenance(command, n=len(found)))
    return sorted(rows, key=lambda row: (row.get("budget") or 0, row["kl"]))


def summarize(cases: list[dict[str, Any]], table: str, command: str) -> list[dict[str, Any]]:
    """Rows, in the order in which their first cases come."""
    cells: dict[tuple[Any, ...], list[list[float]]] = {}
    for case in cases:
        cells.setdefault((case["task"], case["recipe"], case["look"], case["length"]), []).append(case["scores"])
    rows = []
    for (task, recipe, look, length), scores in cells.items():
        row = {"table": table, "task": task, "recipe": recipe + (f", reread {look}" if look else ""), "length": length}
        found = estimate(scores)
        if all(len(case) == 1 and case[0] in (0.0, 1.0) for case in scores):
            row["right"] = round(sum(case[0] for case in scores))
        else:
            row |= {"mean": round(100 * found.mean, 1), "questions": sum(map(len, scores))}
            row |= {k: round(100 * v, 1) for k, v in (("low", found.low), ("high", found.high)) if v is not None}
        rows.append(row | provenance(command, n=len(scores)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", required=True)
    parser.add_argument("--command", required=True, help="the command that made FILE")
    options = parser.parse_args()
    cases = [json.loads(line) for line in options.file.read_text().splitlines()]
    cases = [case for case in cases if "recipe" in case]
    make = fidelity if all(case.get("kl") for case in cases) else summarize
    for row in make(cases, options.table, options.command):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
