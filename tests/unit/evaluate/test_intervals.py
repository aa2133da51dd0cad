"""Intervals against published values and by their coverage."""

from __future__ import annotations

import random

import pytest

from kvcli.evaluate.intervals import estimate, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson(right: int, n: int, low: float, high: float) -> None:
    """The last two are method 3 of Newcombe 1998, table I."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_right_or_wrong_gets_wilson_and_anything_else_a_bootstrap() -> None:
    assert estimate([[1.0], [0.0], [1.0]]).interval == "wilson"
    assert estimate([[0.5], [0.0], [1.0]]).interval == "bootstrap"
    assert estimate([[1.0, 0.0], [1.0, 1.0]]).interval == "bootstrap"


def test_questions_of_one_reading_are_one_draw() -> None:
    """Eight questions of each of ten readings that stand or fall together are ten draws, not eighty."""
    rng = random.Random(1)
    cases = [[float(rng.random() < 0.5)] * 8 for _ in range(10)]
    found = estimate(cases)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.4
    assert found.low <= found.mean <= found.high


def test_all_right_is_no_certainty() -> None:
    found = estimate([[1.0] * 8] * 5)
    assert (found.low, found.high) == wilson(5, 5)


def test_one_case_of_fractions_tells_nothing() -> None:
    found = estimate([[0.25, 0.75]])
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_a_bootstrap_covers_what_it_should() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(40):
        found = estimate([[rng.random()] for _ in range(20)])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert hits >= 34


def test_distances_of_zero_are_no_wrong_answers() -> None:
    found = estimate([[0.0], [0.0], [0.0]], shares=False)
    assert (found.mean, found.low, found.high, found.interval) == (0.0, 0.0, 0.0, "bootstrap")
