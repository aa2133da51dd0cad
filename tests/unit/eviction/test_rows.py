"""Policies that look at single rows of attention: Keyformer's noise and CORM's votes; and PyramidKV's budgets."""

import math

import pytest
import torch

from kvcli.errors import UsageError
from kvcli.eviction import keyformer
from kvcli.eviction.corm import VOTE, Corm
from kvcli.eviction.h2o import H2o
from kvcli.eviction.keyformer import Keyformer
from kvcli.eviction.pyramidkv import Pyramidkv
from kvcli.eviction.snapkv import Snapkv
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import filled
from tests.unit.eviction.test_scores import chunk

MODEL = tiny.load("llama")


def rows_of(policy, weights: list[list[float]], **fields):
    """Score a chunk of one head whose queries give the units these shares; units after a query are left out."""
    part = chunk(0, len(weights), start=0)
    part.pos = torch.arange(len(weights)).int()[None]
    part.q, part.scores = torch.zeros(1, len(weights), 8), torch.zeros(1, 0)
    for name, value in fields.items():
        setattr(part, name, value)
    logits = torch.tensor(weights).log()[None, None]
    part.blocks = lambda first, last, *_: iter([(first, logits[:, :, first:last].clone())])
    return policy.rescore(part), part


def test_blocks_are_the_rows_of_the_whole() -> None:
    """For any block size: causal, with probe; attention sums them."""
    part = chunk(kept=3, new=5, probe=2)
    whole = next(part.blocks(0, 7, 7))[1]
    for block in (1, 2, 3, 128):
        found = [logits for _, logits in part.blocks(0, 7, block)]
        assert torch.allclose(torch.cat(found, dim=2), whole)
    assert bool((whole[0, 0].isinf().sum(dim=1) == torch.arange(6, -1, -1)).all())
    mass = part.attention(2, 7)
    assert torch.allclose(mass, whole.softmax(-1)[:, :, 2:].sum(2).mean(1)[:, :8], atol=1e-6)


def test_keyformer_without_noise_and_temperature_is_h2o() -> None:
    keep = Keyformer(budget=24, noise=0.0, delta=0.0, stabilizers=8)
    for size in (5, 16):
        one = filled(MODEL, tiny.document(90), str(parse("h2o(budget=24, stabilizers=8)")), size)
        two = filled(MODEL, tiny.document(90), "keyformer(budget=24, noise=0, delta=0, stabilizers=8)", size)
        assert keep == two.policy
        for a, b in zip(one.layers, two.layers, strict=True):
            assert torch.equal(a.pos, b.pos)
            assert torch.equal(a.scores, b.scores)


def test_keyformer_known_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal logits and noise (0, ln 3): a quarter and three quarters; with a huge τ a half each."""
    monkeypatch.setattr(keyformer, "gumbel", lambda *_: torch.tensor([0.0, math.log(3)]))
    mass, _ = rows_of(Keyformer(delta=0.0), [[0.5, 0.5], [0.5, 0.5]])
    assert torch.allclose(mass, torch.tensor([[0.5, 1.5]]))
    state = {"chunks": torch.tensor([1])}
    mass, part = rows_of(Keyformer(delta=1e6), [[0.5, 0.5], [0.5, 0.5]], state=state)
    assert torch.allclose(mass, torch.tensor([[1.0, 1.0]]), atol=1e-5)
    assert part.state["chunks"].tolist() == [2]


def test_keyformers_noise_depends_on_places_alone() -> None:
    """Without eviction and τ, any chunk size gives the same scores; each query still gives away one unit of mass."""
    runs = [
        filled(MODEL, tiny.document(60), "keyformer(budget=60, delta=0, stabilizers=0)", size) for size in (60, 16, 7)
    ]
    other = filled(MODEL, tiny.document(60), "keyformer(budget=60, delta=0, stabilizers=0, seed=1)", 60)
    for a, b, c, d in zip(*(run.layers for run in (*runs, other)), strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-4)
        assert torch.allclose(a.scores, c.scores, atol=1e-4)
        assert not torch.allclose(a.scores, d.scores, atol=1e-2)
        assert torch.allclose(a.scores.sum(dim=1), torch.tensor(60.0), atol=1e-3)


def test_the_noise_is_gumbels() -> None:
    part = chunk(kept=0, new=200, start=0)
    part.q = torch.zeros(4, 200, 8)
    noise = keyformer.gumbel(part, 0, 200, 0)
    assert noise.shape == (2, 2, 200, 200)
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.04
    for axis in (1, 2, 3):
        a, b = noise.narrow(axis, 0, noise.shape[axis] - 1), noise.narrow(axis, 1, noise.shape[axis] - 1)
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02


def test_corms_votes() -> None:
    """Four visible units: with (.7, .1, .1, .1) one is major; a quarter each is an equal share for all."""
    alone = [[1.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 0, 0, 0]]
    _, part = rows_of(Corm(window=1), [*alone, [0.7, 0.1, 0.1, 0.1]])
    assert part.state[VOTE].tolist() == [[3, -1, -1, -1]]
    _, part = rows_of(Corm(window=1), [*alone, [0.25] * 4])
    assert part.state[VOTE].tolist() == [[3, 3, 3, 3]]
    _, part = rows_of(Corm(window=2), [*alone[:2], [0.1, 0.1, 0.8, 0], [0.7, 0.1, 0.1, 0.1]])
    assert part.state[VOTE].tolist() == [[3, -1, 2, -1]]


def test_corm_keeps_what_has_a_recent_vote_and_no_more() -> None:
    keep = Corm(budget=100, window=4, stabilizers=1)
    part = chunk(0, 8, start=0)
    part.state[VOTE] = torch.tensor([[-1, 5, 0, 4, -1, 6, -1, -1], [-1, -1, 7, -1, 3, -1, -1, -1]]).int()
    scores = torch.tensor([[5.0, 0, 0, 0, 0, 0, 0, 0], [3.0, 1, 0, 0, 0, 2, 0, 0]])
    # The first head keeps 1, 3, 5 and the newest; the second 2 and 7, and as many more: the last vote, then the mass.
    assert keep.choose(part, scores, 100, 1).tolist() == [[1, 3, 5, 7], [0, 2, 5, 7]]
    assert part.state[VOTE].tolist() == [[5, 4, 6, -1], [-1, 7, -1, -1]]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_corms_votes_do_not_depend_on_chunks(size: int) -> None:
    one = filled(MODEL, tiny.document(60), "corm(budget=60, share=0.7, stabilizers=60, window=30)", size)
    two = filled(MODEL, tiny.document(60), "corm(budget=60, share=0.7, stabilizers=60, window=30)", 20)
    for a, b in zip(one.layers, two.layers, strict=True):
        age, other = ((59 - layer.state[VOTE]).clamp(max=30) for layer in (a, b))
        assert torch.equal(age, other)


def test_corm_evicts_before_its_budget_is_full() -> None:
    work = filled(MODEL, tiny.document(120), "corm(budget=100, stabilizers=4, window=8)", 16)
    assert max(layer.count for layer in work.layers) < 100


def test_pyramidkvs_budgets() -> None:
    """The published shares for a budget of 64 and four layers, without the window: 124.8, 84.27, 43.73 and 3.2."""
    keep = Pyramidkv(budget=64, stabilizers=0)
    assert [keep.units(i, 4) for i in range(4)] == [125, 84, 44, 3]
    with_floor = Pyramidkv(budget=64, sinks=10)
    assert abs(sum(with_floor.units(i, 30) or 0 for i in range(30)) - 64 * 30) <= 30


def test_pyramidkv_without_its_pyramid_is_snapkv() -> None:
    fields = "budget=24, stabilizers=4, window=8, pool=7"
    one = filled(MODEL, tiny.document(90), f"pyramidkv({fields}, pyramid=0, how=mean)", 16, probe=tiny.document(6))
    two = filled(MODEL, tiny.document(90), f"snapkv({fields})", 16, probe=tiny.document(6))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert torch.equal(a.pos, b.pos)
        assert torch.equal(a.scores, b.scores)


def test_a_maximum_filter_takes_the_largest_neighbour() -> None:
    part = chunk(kept=3, new=5)
    plain = Snapkv(pool=1).rescore(part)
    found = Snapkv(pool=3, how="max").rescore(part)
    for i in range(8):
        assert torch.equal(found[:, i], plain[:, max(0, i - 1) : i + 2].amax(dim=1))


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (Corm, {"window": 0}),
        (Corm, {"share": -1.0}),
        (Corm, {"share": float("nan")}),
        (Keyformer, {"noise": -1.0}),
        (Keyformer, {"delta": float("inf")}),
        (Keyformer, {"seed": -1}),
        (Snapkv, {"pool": 4}),
        (Pyramidkv, {"window": 0}),
        (Pyramidkv, {"pyramid": 1.0}),
        (H2o, {"budget": 0}),
    ],
)
def test_impossible_fields_are_refused(policy, fields: dict) -> None:
    with pytest.raises(UsageError) as error:
        policy(**fields)
    assert policy.name in error.value.message
