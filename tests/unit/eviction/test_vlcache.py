"""VL-Cache: which weights count, how the layers share the budget, and what stays."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.engine.prefill import new_prefill_cache, prefill_steps
from kvcli.errors import UsageError
from kvcli.eviction.vlcache import DENSE, Vlcache, water_fill
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import asked, drain, filled
from tests.unit.eviction.test_rows import rows_of

MODEL = tiny.load("llama")
PROBE = tiny.document(6, seed=3)


def test_a_weight_counts_if_it_is_a_hundredth_of_the_largest() -> None:
    """Of (.8, .15, .045, .005) the last is below .008: a quarter does not count. Units after a query are no entries."""
    _, part = rows_of(Vlcache(window=1), [[1.0, 0, 0, 0]] * 3 + [[0.8, 0.15, 0.045, 0.005]])
    assert part.state[DENSE].tolist() == [0.75]
    mass, part = rows_of(Vlcache(), [[1.0, 0, 0, 0], [0.995, 0.005, 0, 0], [0.8, 0.15, 0.05, 0], [0.25] * 4])
    assert part.state[DENSE].tolist() == pytest.approx([0.9])
    assert torch.allclose(mass, torch.tensor([[3.045, 0.405, 0.3, 0.25]]))


def test_two_layers_share_by_the_weights_that_count() -> None:
    assert Vlcache(budget=100).allot([{DENSE: torch.tensor([x])} for x in (0.75, 0.25)], [200, 200]) == [150, 50]


@given(
    layers=st.lists(st.tuples(st.floats(0.001, 1), st.integers(0, 300)), min_size=1, max_size=12),
    mean=st.integers(1, 200),
    least=st.integers(0, 20),
)
def test_the_shares_sum_to_the_budget(layers: list[tuple[float, int]], mean: int, least: int) -> None:
    """Whatever the shares: no layer gets more than it has, and no unit is lost; the larger share gets no less."""
    shares, most = [s for s, _ in layers], [n for _, n in layers]
    found = water_fill(shares, most, mean, min(least, mean))
    assert sum(found) == min(mean * len(layers), sum(most))
    assert all(min(least, mean, n) <= units <= n for units, n in zip(found, most, strict=True))
    pairs = sorted(zip(shares, found, most, strict=True))
    assert all(b >= a - 1 for (s, a, n), (t, b, m) in pairwise(pairs) if s < t and b < m)


def test_equal_shares_are_a_uniform_budget() -> None:
    assert water_fill([0.4] * 5, [90] * 5, 30, 3) == [30] * 5


@pytest.mark.parametrize("sinks", [0, 3])
def test_what_stays_is_the_top_of_the_scores(sinks: int) -> None:
    """But for sinks and the window of the newest; each layer has what was allotted, and in all it is the budget."""
    recipe, ids = parse(f"vlcache(budget=30, sinks={sinks})"), tiny.document(90)
    work = new_prefill_cache(MODEL, recipe, 90, chunk=16, probe=6)
    events = prefill_steps(MODEL, ids, recipe, chunk=16, probe=PROBE, resume=work)
    while work.seen < 90:
        next(events)
    before = [(layer.pos[:, : layer.count].clone(), layer.scores[:, : layer.count].clone()) for layer in work.layers]
    assert all(layer.count == 60 for layer in work.layers)
    drain(events)
    assert sum(layer.count for layer in work.layers) == 90
    for layer, (pos, scores) in zip(work.layers, before, strict=True):
        for head in range(len(pos)):
            free = (pos[head] >= sinks) & (torch.arange(60) < 57)
            kept = torch.isin(pos[head], layer.pos[head, : layer.count])
            assert bool(kept[~free].all())
            assert scores[head][free & kept].min() >= scores[head][free & ~kept].max()


def test_layers_differ_with_the_model() -> None:
    counts = [layer.count for layer in filled(MODEL, tiny.document(90), "vlcache(budget=30)", 16, probe=PROBE).layers]
    assert len(set(counts)) > 1


@pytest.mark.parametrize("terms", ["+minicache", "+kivi(bits=4)", "+turbo(bits=4, fill=true)", "+quest"])
def test_other_terms_take_what_was_allotted(terms: str) -> None:
    recipe, question = f"vlcache(budget=30, tail=5){terms}", tiny.document(6, seed=3)
    assert bool(asked(MODEL, tiny.document(90), question, recipe, 16).isfinite().all())
    work = filled(MODEL, tiny.document(90), recipe, 16, probe=PROBE)
    layers = work.layers
    counts = [layer.count for layer in layers if not layer.uses_owner and not layer.follows]
    assert sum(counts) == 35 * len(counts)
    assert all(layer.count == layers[layer.index - 1].count for layer in layers if layer.follows)


@pytest.mark.parametrize("fields", ["slack=0.5", "least=0", "least=1", "window=0", "pyramid=0.5", "victims=merge"])
def test_what_cannot_be_is_refused(fields: str) -> None:
    with pytest.raises(UsageError, match="vlcache"):
        parse(f"vlcache({fields})")


def test_a_fold_is_refused() -> None:
    with pytest.raises(UsageError, match="vlcache evicts once more"):
        parse("vlcache+less")
