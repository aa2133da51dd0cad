"""SubGen's estimator: exact while everything fits, unbiased when it does not, and the same in any split."""

from __future__ import annotations

import pytest
import torch

from kvcli.errors import UsageError
from kvcli.fold.clustergen import _BOUND, _CENTRE, _COUNT, _KEY, _ORDER, _SAMPLE, _VALUE, ClusterGen
from kvcli_kernels.attention import ref
from tests import tiny

SPEC = tiny.load("llama").spec  # two KV heads of 8, four heads


def units(count: int, seed: int = 0, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, count, 8, generator=made) * scale for scale in (spread, 1.0))
    return k, v, torch.arange(count, dtype=torch.int32).expand(2, count)


def folded(fold: ClusterGen, k, v, pos, parts: int = 1) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for part in torch.arange(k.shape[1]).chunk(parts):
        fold.take(0, state, k[:, part], v[:, part], pos[:, part])
    return state


@pytest.mark.parametrize("parts", [1, 4])
def test_what_fits_is_attended_exactly(parts: int) -> None:
    k, v, pos = units(40)
    q = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(9))
    fold = ClusterGen(clusters=3, samples=40, values=40, delta=0.5)
    o, lse = fold.recall(folded(fold, k, v, pos, parts), q, 0.3)
    expected, expected_lse = ref.attention(q, k, v, 0.3, 40)
    assert torch.allclose(o, expected, atol=1e-4)
    assert torch.allclose(lse, expected_lse, atol=1e-4)


def test_two_clusters_by_hand() -> None:
    """Keys 0, 0.1 and 1 with delta 0.5: centres 0 and 1, with two keys and one."""
    k = torch.tensor([0.0, 0.1, 1.0]).view(1, 3, 1)
    fold = ClusterGen(clusters=5, delta=0.5)
    state = folded(fold, k, k, torch.arange(3, dtype=torch.int32)[None])
    assert state[_CENTRE][0, :, 0].tolist() == [0, 1, 0, 0, 0]
    assert state[_COUNT].tolist() == [[2, 1, 0, 0, 0]]


def test_both_sums_are_unbiased() -> None:
    """The means over seeds are within four standard errors of the sums over all units."""
    k, v, pos = units(60, spread=0.5)
    q = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(9))
    kept = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    weights = torch.exp(q @ kept[0].transpose(1, 2))
    mass, total = [], []
    for seed in range(300):
        fold = ClusterGen(clusters=3, samples=3, values=8, delta=0.5, seed=seed)
        o, lse = fold.recall(folded(fold, k, v, pos, 2), q, 1.0)
        mass.append(lse.exp()[:, 0])
        total.append(o[:, 0] * lse.exp())
    for found, wanted in ((mass, weights.sum(2)[:, 0]), (total, (weights @ kept[1])[:, 0])):
        drawn = torch.stack(found)
        assert bool(((drawn.mean(0) - wanted).abs() < 4 * drawn.std(0) / 300**0.5).all())


def test_samples_are_the_same_in_any_split_and_as_large_as_planned() -> None:
    """With one cluster, which no order changes; counts are of all that was folded."""
    k, v, pos = units(100)
    fold = ClusterGen(clusters=1, samples=5, values=7)
    whole, *others = (folded(fold, k, v, pos, parts) for parts in (1, 3, 100))
    for state in others:
        for name in (_COUNT, _ORDER, _SAMPLE, _BOUND):
            assert torch.equal(state[name], whole[name])
        assert torch.equal(state[_KEY].sort(1).values, whole[_KEY].sort(1).values)
        assert torch.equal(state[_VALUE].sort(1).values, whole[_VALUE].sort(1).values)
    assert whole[_COUNT].tolist() == [[100.0], [100.0]]
    assert sum(t.nbytes for t in whole.values()) == fold.state_nbytes(SPEC)


def test_keys_near_a_centre_join_it_and_at_the_bound_all_do() -> None:
    k, v, pos = units(200)
    state = folded(ClusterGen(clusters=200, delta=2.0), k, v, pos, 5)
    for head in range(2):
        used = state[_COUNT][head] > 0
        centres = state[_CENTRE][head][used]
        assert float(torch.cdist(k[head], centres).amin(1).max()) <= 2.0 + 1e-4
        between = torch.cdist(centres, centres) + 1e9 * torch.eye(len(centres))
        assert float(between.min()) > 2.0
    few = folded(ClusterGen(clusters=4, delta=0.0), k, v, pos, 5)
    assert few[_COUNT].sum(1).tolist() == [200.0, 200.0]
    assert bool((few[_COUNT] > 0).all())


def test_all_evicted_keys_are_at_one_distance() -> None:
    """What fits is attended as if all keys stood that far before each query."""
    rotary = tiny.load("llama").rotary
    k, v, pos = units(20)
    q = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(9))
    fold = ClusterGen(samples=20, values=20, distance=7).open(SPEC, torch.device("cpu"), rotary)
    state: dict[str, torch.Tensor] = {}
    fold.take(0, state, k, v, pos)
    found = fold.recall(0, state, q, 0.3)
    here, there = torch.full((2, 20), 30), torch.full((4, 3), 37)
    expected = ref.attention(rotary.rotate(0, q, there), rotary.rotate(0, k, here), v, 0.3, 20)
    assert torch.allclose(found[0], expected[0], atol=1e-4)
    assert torch.allclose(found[1], expected[1], atol=1e-4)


def test_values_of_zero_weigh_nothing() -> None:
    k, v, pos = units(30)
    fold = ClusterGen(values=4)
    o, lse = fold.recall(folded(fold, k, v * 0, pos), torch.ones(4, 1, 8), 1.0)
    assert torch.equal(o, torch.zeros(4, 1, 8))
    assert bool(lse.isfinite().all())


@pytest.mark.parametrize(
    "fields", [{"clusters": 0}, {"samples": 0}, {"values": 0}, {"delta": -1.0}, {"seed": -1}, {"distance": -1}]
)
def test_impossible_fields_are_refused(fields: dict) -> None:
    with pytest.raises(UsageError, match="clustergen"):
        ClusterGen(**fields)
