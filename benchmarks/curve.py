"""Right answers against kept units, drawn from the rows that ``kvcli eval … --out rows.jsonl`` has kept:

    kvcli eval needle book.txt --lengths 4K --policy locret --policy keydiff --budget 256 --budget 1024 --out rows.jsonl
    python -m benchmarks.curve rows.jsonl --out docs/budget.svg

One line per policy, one dot per budget with its 95 % interval; a policy without a budget (``full``) is a level.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from kvcli.evaluate.intervals import estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cells: dict[str, dict[int | None, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    what = set()
    for line in (line for path in options.rows for line in path.read_text().splitlines()):
        row = json.loads(line)
        if "recipe" in row:  # the first line of a file says how it was made
            name = row["recipe"].partition("(")[0] + (f", look {row['look']}" if row["look"] else "")
            cells[name][row["budget"]].append(row["scores"])
            what.add(f"{row['task']}, {row['length']:,} tokens")

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "kvcli"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    budgets = sorted({b for by in cells.values() for b in by if b is not None})
    for name, by in sorted(cells.items()):
        if None in by:
            axes.axhline(100 * estimate(by[None]).mean, color="black", linewidth=0.8, linestyle="--", label=name)
            continue
        found = {b: estimate(by[b]) for b in budgets if b in by}
        means = [100 * e.mean for e in found.values()]
        bars = [
            [m - 100 * (e.low if e.low is not None else e.mean) for m, e in zip(means, found.values(), strict=True)],
            [100 * (e.high if e.high is not None else e.mean) - m for m, e in zip(means, found.values(), strict=True)],
        ]
        axes.errorbar(list(found), means, yerr=bars, marker="o", markersize=4, linewidth=1.2, capsize=2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [f"{b:,}" for b in budgets])
    axes.set(xlabel="units kept per KV head", ylabel="right answers, %", ylim=(0, 102), title="; ".join(sorted(what)))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})
    print(json.dumps({n: {str(b): round(estimate(v).mean, 4) for b, v in by.items()} for n, by in cells.items()}))


if __name__ == "__main__":
    main()
