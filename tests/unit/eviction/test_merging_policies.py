"""KVMerger, Elastic Cache and SubGen's centres: units that are merged or chosen by their keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.cache.units import DenseUnits
from kvcli.errors import UsageError
from kvcli.eviction.elastic import Elastic
from kvcli.eviction.kvmerger import Kvmerger
from kvcli.eviction.merging import SIZE
from kvcli.eviction.subgen import Subgen
from tests import tiny
from tests.laws.helpers import filled
from tests.unit.eviction.test_scores import chunk

MODEL = tiny.load("llama")


def of(keys: list[list[float]], values: list[float], kept: int = 0):
    """A chunk of one head with these keys and values, which stand one after the other."""
    k, v = torch.tensor([keys]), torch.tensor([[[x] * len(keys[0]) for x in values]])
    part = chunk(kept=0, new=len(keys), start=0)
    part.units, part.new_k, part.new_v = DenseUnits(k, v, k), k[:, kept:], v[:, kept:]
    part.pos, part.scores = torch.arange(len(keys)).int()[None], torch.zeros(1, kept)
    return part


def test_kvmerger_merges_equal_neighbours() -> None:
    keep = Kvmerger(budget=2, heavy=0.0, stabilizers=0)
    part = of([[1.0, 0], [1.0, 0], [0, 1.0]], [2.0, 4.0, 9.0])
    index = keep.choose(part, torch.tensor([[0.1, 0.5, 0.2]]), 2, 0)
    assert index.tolist() == [[1, 2]]  # the pivot of {0, 1} is the member with most attention
    k, v = keep.remains(part, index)
    assert k.tolist() == [[[1.0, 0], [0, 1.0]]]
    assert v[0, :, 0].tolist() == [3.0, 9.0]
    assert part.state[SIZE].tolist() == [[2.0, 1.0]]
    assert set(part.state) == {SIZE}


def test_kvmerger_weighs_by_distance_and_size() -> None:
    """Members at distance d of the pivot: the width comes from a first pass with the mean square."""
    keep = Kvmerger(budget=1, heavy=0.0, stabilizers=0)
    part = of([[1.0, 0], [1.0, 0.5]], [0.0, 1.0])
    part.state[SIZE] = torch.tensor([[1.0, 3.0]])
    index = keep.choose(part, torch.tensor([[1.0, 0.0]]), 1, 0)
    _, v = keep.remains(part, index)
    square = 0.25
    first = torch.exp(torch.tensor(-square / (2 * square / 2)))
    sigma = (1 + first) / (2**0.5 * 2)
    weight = 3 * torch.exp(-square / (2 * sigma**2))
    assert torch.allclose(v[0, 0, 0], weight / (1 + weight), atol=1e-6)
    assert part.state[SIZE].tolist() == [[4.0]]


@given(seed=st.integers(0, 200), budget=st.integers(4, 29), heavy=st.sampled_from([0.0, 0.3]), sinks=st.integers(0, 2))
def test_kvmergers_survivors_are_members_of_their_sets(seed: int, budget: int, heavy: float, sinks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    part = chunk(kept=10, new=20)
    scores = torch.rand(2, 30, generator=generator)
    keep = Kvmerger(budget=budget, heavy=heavy, sinks=sinks, stabilizers=1)
    index = keep.choose(part, scores, budget, 1)
    assert bool((index.diff(dim=1) > 0).all())
    assert index.shape == (2, budget)
    sets, chosen = part.state["sets"], part.state["chosen"]
    assert torch.equal(sets.gather(1, index), chosen)
    assert bool((index[:, -1] == 29).all())
    keep.remains(part, index)
    held = torch.stack([torch.isin(sets[h], chosen[h]).sum() for h in range(2)])
    assert torch.equal(part.state[SIZE].sum(dim=1), held.float())  # all that was not dropped


@pytest.mark.parametrize("policy", ["kvmerger", "elastic"])
def test_equal_units_merge_to_themselves(policy: str) -> None:
    keep = {"kvmerger": Kvmerger, "elastic": Elastic}[policy](budget=5, stabilizers=1)
    part = of([[1.0, 2.0]] * 12, [3.0] * 12)
    index = keep.choose(part, torch.rand(1, 12, generator=torch.Generator().manual_seed(0)), 5, 1)
    k, v = keep.remains(part, index)
    assert torch.allclose(k, torch.tensor([1.0, 2.0]).expand(1, 5, 2))
    assert torch.allclose(v, torch.full((1, 5, 2), 3.0))
    assert float(part.state[SIZE].sum()) <= 12


def test_elastic_averages_into_the_nearest_anchor() -> None:
    """Anchors 0 and 3: unit 1 goes to 0 and unit 2 to 3; between 0 and 2, unit 1 goes to the earlier."""
    keep = Elastic(budget=2, sinks=0, stabilizers=0)
    part = of([[0.0, 0], [2.0, 0], [0, 4.0], [0, 0]], [0.0, 2.0, 4.0, 0.0])
    k, v = keep.remains(part, torch.tensor([[0, 3]]))
    assert k.tolist() == [[[1.0, 0], [0, 2.0]]]
    assert v[0, :, 0].tolist() == [1.0, 2.0]
    part = of([[0.0, 0], [2.0, 0], [0, 0]], [0.0, 2.0, 0.0])
    assert keep.remains(part, torch.tensor([[0, 2]]))[1][0, :, 0].tolist() == [1.0, 0.0]


def test_elastics_scores_are_the_papers_and_not_its_codes() -> None:
    """Scores 5, 1, 4, 2, 3 without two: the paper keeps 0, 2 and 4."""
    keep = Elastic(budget=3, sinks=0, stabilizers=0)
    part = of([[0.0, 1]] * 5, [0.0] * 5)
    assert keep.choose(part, torch.tensor([[5.0, 1, 4, 2, 3]]), 3, 0).tolist() == [[0, 2, 4]]


def test_elastics_means_are_means_of_tokens_and_heads_agree() -> None:
    """In the first layer, whose keys no eviction changes: all sizes together are the text."""
    work = filled(MODEL, tiny.document(90), "elastic(budget=20)", 16)
    plain = filled(MODEL, tiny.document(90), "full", 90).layers[0]
    for layer in work.layers:
        assert layer.state[SIZE].sum(dim=1).tolist() == [90.0, 90.0]
        assert torch.equal(layer.pos[0, :20], layer.pos[1, :20])
    layer = work.layers[0]
    weighted = (layer.v[:, :20] * layer.state[SIZE][..., None]).sum(dim=1)
    assert torch.allclose(weighted, plain.v[:, :90].sum(dim=1), atol=1e-3)


@given(seed=st.integers(0, 200), budget=st.integers(1, 29), recent=st.integers(0, 5), sinks=st.integers(0, 2))
def test_no_evicted_key_is_farther_from_a_centre_than_two_centres(
    seed: int, budget: int, recent: int, sinks: int
) -> None:
    part = chunk(kept=0, new=30, start=0)
    k = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(seed))
    part.units = DenseUnits(k, k, k)
    recent = min(recent, max(0, budget - sinks))
    sinks = min(sinks, budget)
    index = Subgen(budget=budget, sinks=sinks, stabilizers=recent).choose(part, torch.zeros(2, 30), budget, recent)
    assert index.shape == (2, budget)
    assert bool((index.diff(dim=1) > 0).all())
    for head in range(2):
        distance = torch.cdist(k[head], k[head])
        centres = index[head]
        free = [i for i in centres.tolist() if i >= sinks and i < 30 - recent]
        if budget > 1 and len(free) == budget:  # protected units may be close to each other
            between = distance[centres][:, centres] + torch.eye(budget) * 1e9
            assert float(distance[:, centres].amin(dim=1).max()) <= float(between.min()) + 1e-4


@pytest.mark.parametrize("policy", [Kvmerger, Elastic])
def test_they_merge_themselves(policy) -> None:
    with pytest.raises(UsageError, match="itself"):
        policy(victims="match")
    with pytest.raises(UsageError):
        Kvmerger(heavy=1.5)
