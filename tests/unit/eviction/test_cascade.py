"""Cascading windows: the published insertion, unit by unit, beside the vectorised one."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.errors import UsageError
from kvcli.eviction.cascade import FILL, Cascade
from tests import tiny
from tests.laws.helpers import filled
from tests.unit.eviction.test_scores import chunk

MODEL = tiny.load("llama")


def slow(scores: list[float], widths: list[int], eager: int) -> list[list[int]]:
    """The published rule, with scores that do not change."""
    levels: list[list[int]] = [[] for _ in widths]
    for t in range(len(scores)):
        arrival = t
        for i, (level, width) in enumerate(zip(levels, widths, strict=True)):
            if not (t % 2**i == 0 or t <= eager) and level:
                if scores[arrival] >= scores[level[-1]]:
                    level[-1] = arrival
                break
            level.append(arrival)
            if len(level) <= width:
                break
            arrival = level.pop(0)
    return levels


def chunked(scores: list[float], policy: Cascade, size: int) -> tuple[list[int], list[int]]:
    """Kept places and the levels' lengths after chunks of ``size``."""
    kept, state = list[int](), dict[str, torch.Tensor]()
    for start in range(0, len(scores), size):
        new = list(range(start, min(start + size, len(scores))))
        both = kept + new
        if len(both) <= policy.budget:
            kept = both
            continue
        part = chunk(len(kept), len(new), start=start, state=state)
        part.pos = torch.tensor(both).int().expand(2, -1)
        index = policy.choose(part, torch.tensor([[scores[place] for place in both]] * 2), policy.budget, 0)
        kept = [both[i] for i in index[1].tolist()]
    return kept, state[FILL].tolist() if FILL in state else []


@pytest.mark.parametrize(
    ("scores", "expected"), [([1.0] * 10, [5, 7, 8, 9]), ([-float(t) for t in range(10)], [4, 6, 8, 9])]
)
@pytest.mark.parametrize("size", [1, 3, 10])
def test_two_levels_of_two(scores: list[float], expected: list[int], size: int) -> None:
    """Worked out by hand: the levels are {8, 9} and {5, 7}, or {4, 6} if scores fall."""
    policy = Cascade(budget=4, levels=2, sinks=0)
    assert slow(scores, [2, 2], 4) == [[8, 9], expected[:2]]
    assert chunked(scores, policy, size)[0] == expected


@given(
    length=st.integers(1, 60),
    size=st.integers(1, 60),
    budget=st.integers(5, 24),
    levels=st.integers(1, 5),
    sinks=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_chunks_insert_as_single_units_do(
    length: int, size: int, budget: int, levels: int, sinks: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (length,), generator=generator).float().tolist()
    try:
        policy = Cascade(budget=budget, levels=levels, sinks=sinks)
    except UsageError:
        assert (budget - sinks) // levels == 0
        return
    kept, fill = chunked(scores, policy, size)
    expected = slow(scores[sinks:], policy.widths(budget), budget - sinks)
    assert kept == [*range(min(sinks, length)), *(t + sinks for level in reversed(expected) for t in level)]
    assert fill in ([], [len(level) for level in expected])
    assert len(kept) == min(budget, length)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_with_equal_scores_a_level_thins_out_to_every_second_unit_of_the_one_before(levels: int) -> None:
    policy = Cascade(budget=8 * levels, levels=levels, sinks=0)
    kept, _ = chunked([1.0] * 500, policy, 37)
    assert kept[0] >= 500 - 8 * (2**levels - 1)
    for level in range(levels):
        units = kept[len(kept) - 8 * (level + 1) : len(kept) - 8 * level]
        assert {b - a for a, b in pairwise(units[:-1])} == {2**level}


def test_one_level_is_streaming() -> None:
    for size in (5, 16):
        one = filled(MODEL, tiny.document(90), "cascade(budget=24, levels=1)", size)
        two = filled(MODEL, tiny.document(90), "streaming(budget=24, stabilizers=20)", size)
        for a, b in zip(one.layers, two.layers, strict=True):
            assert torch.equal(a.pos, b.pos)
            assert torch.equal(a.k, b.k)


def test_the_average_decays_by_the_query_whatever_the_chunks() -> None:
    whole = filled(MODEL, tiny.document(40), "cascade(budget=40, decay=0.9)", 40)
    parts = filled(MODEL, tiny.document(40), "cascade(budget=40, decay=0.9)", 7)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-5)
        assert bool((a.scores.sum(dim=1) <= 1).all())


@pytest.mark.parametrize("fields", [{"levels": 0}, {"decay": 1.0}, {"decay": -1.0}, {"budget": 6, "levels": 4}])
def test_impossible_fields_are_refused(fields: dict) -> None:
    with pytest.raises(UsageError):
        Cascade(**fields)
