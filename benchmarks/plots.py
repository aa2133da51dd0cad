"""The plots of ``docs/results/``, as SVG.

A file names the digest of its rows. It is drawn again only if they changed, so another version of matplotlib does not
change it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import Row, Tables, interval

COLOURS = {
    "locret": "#1668b8",
    "full": "#c0392b",
    "keydiff": "#2e8b57",
    "snapkv": "#8e5ea2",
    "streaming": "#b8860b",
    "h2o": "#7f7f7f",
}


def memory(axes: Any, rows: list[Row]) -> None:
    """Peak memory above the loaded model against tokens read."""
    longest = max(row["tokens"] for row in rows)
    for recipe, label in {"full": "full attention", "locret": "kvcli, locret, 1,024 units kept"}.items():
        points = sorted((row["tokens"], row["peak_bytes"] / 2**20) for row in rows if row["recipe"].startswith(recipe))
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[recipe])
        near = {"xytext": (7, -3), "ha": "left"} if 2 * points[-1][0] <= longest else {"xytext": (0, 7), "ha": "right"}
        axes.annotate(label, points[-1], textcoords="offset points", color=COLOURS[recipe], **near)
    step = longest // 4
    axes.set_xticks(range(0, longest + 1, step), [f"{n // 1024}K" for n in range(0, longest + 1, step)])
    axes.set(xlabel="tokens read", ylabel="peak memory above the model, MiB", ylim=(0, None), xlim=(0, None))


def budget(axes: Any, rows: list[Row]) -> None:
    """Right answers against units kept, with 95 % intervals."""
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        own = sorted((row for row in rows if row["recipe"] == recipe), key=lambda row: row["budget"])
        found = [interval(row) for row in own]
        means = [mean for mean, _, _ in found]
        bars = [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
        x = [row["budget"] for row in own]
        axes.errorbar(x, means, yerr=bars, marker="o", markersize=4, capsize=2, color=COLOURS[recipe], label=recipe)
    ticks = sorted({row["budget"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set(xlabel="units kept per KV head", ylabel="right answers, %", ylim=(-2, 102))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


PLOTS: dict[str, Callable[[Any, list[Row]], None]] = {"memory": memory, "budget": budget}
"""File name → function. Each draws the rows of the table of the same name."""


def digest(name: str, tables: Tables) -> str:
    """What a plot depends on: its rows and its code."""
    text = json.dumps(tables[name], sort_keys=True) + inspect.getsource(PLOTS[name])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fresh(name: str, tables: Tables, path: Path) -> bool:
    """Whether a file was drawn from these rows by this code."""
    return path.exists() and f"data {digest(name, tables)}" in path.read_text()


def draw(name: str, tables: Tables, path: Path) -> None:
    """Draw a plot, unless its file is fresh."""
    if fresh(name, tables, path):
        return
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "kvcli", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
        PLOTS[name](axes, tables[name])
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        figure.savefig(path, metadata={"Date": None, "Creator": None, "Description": f"data {digest(name, tables)}"})
        pyplot.close(figure)
