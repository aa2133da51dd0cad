"""``make results``: rows are complete, pages and plots are fresh and short, tables show every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plots import PLOTS, draw, fresh
from benchmarks.results import MISSING, ROOT, cell, commands, fill, interval, read, table
from benchmarks.rows import summarize

TABLES, MACHINES = read(ROOT / "data")
PAGES = sorted(ROOT.glob("*.md"))
HERE = {"m": {"machine": "m", "label": "M", "text": "a machine"}}


def row(**fields):
    return {"table": "t", "n": 10, "command": "c", "date": "2026-01-01", "machine": "m", **fields}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_is_what_its_rows_make_and_at_most_120_lines(page: Path) -> None:
    text = page.read_text()
    assert fill(text, TABLES, MACHINES) == text, "stale: run make results"
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_what_its_rows_make(name: str) -> None:
    assert fresh(name, TABLES, ROOT / f"{name}.svg"), "stale: run make results"


def test_each_table_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in TABLES if f"<!-- table {name}:" not in text] == []


@pytest.mark.parametrize("field", ["n", "command", "date", "machine"])
def test_a_row_without_its_origin_is_refused(field: str, tmp_path: Path) -> None:
    (tmp_path / "machines.jsonl").write_text(json.dumps(HERE["m"]))
    given = row(right=1)
    del given[field]
    (tmp_path / "a.jsonl").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=f"has no {field}"):
        read(tmp_path)


@pytest.mark.parametrize("wrong", [{"machine": "other"}, {"date": "yesterday"}, {"n": 0}])
def test_a_row_with_a_wrong_origin_is_refused(wrong, tmp_path: Path) -> None:
    (tmp_path / "machines.jsonl").write_text(json.dumps(HERE["m"]))
    (tmp_path / "a.jsonl").write_text(json.dumps(row(**wrong)))
    with pytest.raises(ValueError, match="unknown machine, wrong date or n below 1"):
        read(tmp_path)


@settings(deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), st.integers(0, 10), min_size=1))
def test_a_pivot_shows_each_row_once_and_marks_what_is_missing(cells) -> None:
    rows = [row(recipe=a, length=b, right=right) for (a, b), right in cells.items()]
    lines = table("t", "recipe × length = count", {"t": rows}, HERE).splitlines()
    columns = [text.strip() for text in lines[0].strip("|").split("|")][1:]
    found = {
        (line.split("`")[1], column): text.strip()
        for line in lines[2 : 2 + len({a for a, _ in cells})]
        for column, text in zip(columns, line.strip("|").split("|")[1:], strict=True)
    }
    assert {key: f"{right} of 10" for key, right in cells.items()} == {k: v for k, v in found.items() if v != MISSING}


def test_two_rows_for_one_cell_are_an_error() -> None:
    rows = [row(recipe="a", length="x", right=1), row(recipe="a", length="x", right=2)]
    with pytest.raises(ValueError, match="two rows"):
        table("t", "recipe × length = count", {"t": rows}, HERE)


def test_unknown_tables_and_fields_are_errors() -> None:
    with pytest.raises(ValueError, match="there is no table u"):
        commands(["u"], {"t": [row()]})
    with pytest.raises(ValueError, match="has no field width"):
        table("t", "recipe; width", {"t": [row(recipe="a")]}, HERE)


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_rate_is_within_its_interval(case) -> None:
    right, n = case
    mean, low, high = interval(row(right=right, n=n))
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 100
    assert cell(row(right=right, n=n), "rate", n) == f"{mean:.0f} ± {(high - low) / 2:.0f}"


def test_filling_twice_changes_nothing_and_leaves_the_prose() -> None:
    page = "# A\n\nText | bar.\n<!-- table t: recipe; count = right -->\nold\n<!-- end -->\n\nMore.\n"
    page += "<!-- machines -->\n<!-- end -->\n"
    once = fill(page, {"t": [row(recipe="a", right=3)]}, HERE)
    assert fill(once, {"t": [row(recipe="a", right=3)]}, HERE) == once
    assert "old" not in once
    for text in ("# A", "Text | bar.", "| `a` | 3 of 10 |", "More.", "- **M**: a machine."):
        assert text in once


def test_a_plot_is_drawn_again_only_if_its_rows_changed(tmp_path: Path) -> None:
    path, tables = tmp_path / "budget.svg", {"budget": [row(recipe="locret", budget=b, right=b % 9) for b in (2, 4, 8)]}
    draw("budget", tables, path)
    first = path.read_text()
    path.write_text(first + "<!-- kept -->")
    draw("budget", tables, path)
    assert path.read_text().endswith("<!-- kept -->")
    tables["budget"][0]["right"] = 9
    assert not fresh("budget", tables, path)
    draw("budget", tables, path)
    assert path.read_text() != first


def test_cases_of_kvcli_eval_become_rows() -> None:
    cases = [
        {"task": "needle", "recipe": "full", "look": look, "length": 4096, "scores": [float(i < right)]}
        for look, right in ((0, 2), (3, 4))
        for i in range(5)
    ]
    cases += [{"task": "data", "recipe": "full", "look": 0, "length": None, "scores": [0.25, 0.5]} for _ in range(3)]
    rows = summarize(cases, "new", "kvcli eval …")
    assert [(r["recipe"], r.get("right"), r.get("mean"), r["n"]) for r in rows] == [
        ("full", 2, None, 5), ("full, reread 3", 4, None, 5), ("full", None, 37.5, 3)
    ]  # fmt: skip
    assert all(r["command"] == "kvcli eval …" and r["table"] == "new" for r in rows)


def test_the_three_numbers_of_the_readme_are_those_of_the_rows() -> None:
    text = (ROOT.parent.parent / "README.md").read_text()
    ours, full = (
        max((r for r in TABLES["memory"] if r["recipe"].startswith(name)), key=lambda r: r["tokens"])
        for name in ("locret", "full")
    )
    mib = "**{:,.0f} MiB** of peak memory above the model for {}K tokens; full attention takes {:,.0f} MiB for {}K."
    sizes = (size for r in (ours, full) for size in (r["peak_bytes"] / 2**20, r["tokens"] // 1024))
    assert mib.format(*sizes) in text
    speed = next(r for r in TABLES["prefill"] if r["tokens"] == 32768)
    assert f"**{speed['times_faster']} times** as fast a prefill as full attention at 32K tokens" in text
    needle = next(r for r in TABLES["needle"] if r["recipe"] == "locret, reread 3" and r["length"] == "32K")
    mean, low, high = interval(needle)
    assert f"**{mean:.0f} %** (± {(high - low) / 2:.0f})" in text
