"""``make size``: what is counted, and what is a fault."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.size import TABLE, faults, limits, sizes

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10_000))


def test_a_tree_is_the_sum_of_its_packages_and_its_root(tmp_path: Path) -> None:
    for name, count in {"x.py": 1, "a/y.py": 2, "a/deep/z.py": 3, "b/w.py": 4, "b/data.json": 9}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n" * count)
    assert sizes({"t": tmp_path}) == {"t/root": 1, "t/a": 5, "t/b": 4, "t": 10}


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_a_fault_for_each_package_that_is_over_its_limit_or_unknown(found, allowed) -> None:
    wrong = {text.split()[0] for text in faults(found, allowed)}
    over = {p for p, count in found.items() if count > allowed.get(p, -1)}
    assert wrong == over | (set(allowed) - set(found))


def test_every_package_has_a_limit() -> None:
    assert set(limits(TABLE.read_text())) == set(sizes())
