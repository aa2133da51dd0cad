"""Merged layers: what is retained is exact, lengths always are, and two equal layers merge without error."""

from __future__ import annotations

import math

import pytest
import torch

from kvcli.cache.context import freeze
from kvcli.engine.decode_step import make_decode_step
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, prefill
from kvcli.errors import ModelError, UsageError
from kvcli.planning import disk, memory
from kvcli.recipe import parse
from kvcli.share.minicache import MiniCache, merge
from kvcli.storage.base import KeptUnits
from kvcli.storage.dense import Dense, DenseLayer
from tests import tiny
from tests.laws.helpers import answer, asked, distance, drain, filled
from tests.laws.test_prompt_cache import interrupted, job, run, same

ALONE = ["gemma3", "mistral-window"]
"""Families whose layers of full attention have no neighbour."""
FAMILIES = [family for family in tiny.FAMILIES if family not in ALONE]
RECIPES = ["full", "knorm(budget=24)", "h2o(budget=24, sinks=2)", "locret(budget=24, pyramid=0.5)", "corm(budget=24)"]
OTHERS = ["full+int8", "knorm(budget=24)+kivi(bits=4)", "snapkv(budget=24, positions=original)+turbo(bits=8)"]


def test_an_answer_by_hand() -> None:
    """(1, 0) and (0, 2) at 0.6 of a right angle: direction (0.588, 0.809), restored with lengths 1 and 2."""
    found = merge(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 0.6)
    assert torch.allclose(found.direction, torch.tensor([[0.5878, 0.8090]]), atol=1e-4)
    assert torch.allclose(found.direction * found.lengths[0], torch.tensor([[0.5878, 0.8090]]), atol=1e-4)
    assert torch.allclose(found.direction * found.lengths[1], torch.tensor([[1.1756, 1.6180]]), atol=1e-4)
    assert float(found.angle) == pytest.approx(math.pi / 2)


def pair(sharing: MiniCache, a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]):
    pos = torch.arange(a[0].shape[1], dtype=torch.int32).expand(a[0].shape[0], -1)
    return sharing.join(DenseLayer(*a, pos, None), KeptUnits(*b, pos, None), Dense())


def vectors(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(2, 50, 8, generator=made) * scale, torch.randn(2, 50, 8, generator=made)


def test_layers_that_differ_in_length_only_merge_without_error() -> None:
    a = vectors(0)
    b = a[0] * 3, a[1] * torch.linspace(0, 2, 50)[:, None]  # one of length 0 among them
    for layer, units in zip(pair(MiniCache(retain=0), a, b), (a, b), strict=True):
        for got, wanted in zip(layer.dense(), units, strict=True):
            assert torch.allclose(got, wanted, atol=1e-5)


def test_lengths_are_exact_and_what_is_retained_is_what_differs_most() -> None:
    a, b = vectors(1), vectors(2, 4.0)
    layers = pair(MiniCache(retain=0.2), a, b)
    wide = sum(torch.nn.functional.cosine_similarity(x, y, dim=-1).acos() for x, y in zip(a, b, strict=True))
    for layer, units in zip(layers, (a, b), strict=True):
        for got, wanted in zip(layer.dense(), units, strict=True):
            assert torch.allclose(got.norm(dim=-1), wanted.norm(dim=-1), rtol=1e-4)
            same_rows = (got == wanted).all(-1)
            for head in range(2):
                exact = wide[head].topk(10).indices
                assert bool(same_rows[head, exact].all())
                assert int(same_rows[head].sum()) == 10


def test_the_error_grows_with_the_angle() -> None:
    one = torch.tensor([1.0, 0.0])
    angles = torch.linspace(0, math.pi, 40)
    two = torch.stack([angles.cos(), angles.sin()], dim=1)
    for t in (0.3, 0.6):
        found = merge(one.expand(40, 2), two, t)
        assert torch.allclose(found.angle, angles, atol=1e-4)
        assert bool(found.direction.isfinite().all())
        for error in ((found.direction - one).norm(dim=1)[:-1], (found.direction - two).norm(dim=1)[:-1]):
            assert bool((error.diff() > -1e-5).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_with_everything_retained_it_changes_no_bit(model, family: str) -> None:
    ids, question = tiny.document(90), tiny.document(7, seed=3)
    one, two = (asked(model(family), ids, question, r, 16) for r in ("full", "full+minicache(retain=1)"))
    assert torch.equal(one, two)
    assert distance(asked(model(family), ids, question, "full+minicache", 16), one) > 1e-4, "otherwise it does"


@pytest.mark.parametrize("recipe", [*RECIPES, *OTHERS])
def test_the_upper_layer_keeps_what_the_lower_one_keeps(model, recipe: str) -> None:
    ids, question = tiny.document(100), tiny.document(7, seed=3)
    alone, cache = (filled(model(), ids, r, 16, probe=question) for r in (recipe, f"{recipe}+minicache"))
    assert cache.leaders == (0, 1, 1)
    below, above, before = cache.layers[1], cache.layers[2], alone.layers[1]
    assert below.count == above.count == before.count
    for name in ("pos", "scores", "k", "v"):
        assert torch.equal(getattr(below, name)[:, : below.count], getattr(before, name)[:, : before.count])
    for name in ("pos", "scores"):
        assert torch.equal(getattr(above, name)[:, : above.count], getattr(below, name)[:, : below.count])


@pytest.mark.parametrize("recipe", [*RECIPES, *OTHERS])
@pytest.mark.parametrize("retain", [0.0, 0.05, 1.0])
def test_planned_bytes_are_taken(model, recipe: str, retain: float) -> None:
    spec, found = model().spec, parse(f"{recipe}+minicache(retain={retain})")
    for tokens in (20, 300):
        plan = memory.plan(spec, found, tokens=tokens, chunk=16, tail=9)
        cache = filled(model(), tiny.document(tokens), str(found), 16)
        if "corm" not in recipe:
            assert plan.prefill == cache.nbytes - cache.workspace.nbytes
        context = freeze(cache, found.storage)
        assert plan.context == context.nbytes if "corm" not in recipe else plan.context >= context.nbytes


def test_a_pair_has_the_bytes_of_its_parts(model) -> None:
    spec, tokens = model("qwen3").spec, 200
    context = drain(prefill(model("qwen3"), tiny.document(tokens), parse("full+minicache"), chunk=64))
    units, numbers = spec.kv_heads * tokens, 2 * spec.head_dim
    pairs = sum(layer.nbytes for layer in context.layers[1:])
    assert pairs == units * (numbers * 4 + 2 * 2 * 4) + spec.kv_heads * 10 * (2 * numbers * 4 + 4)
    assert pairs < 2 * units * numbers * 4


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[2], OTHERS[1]])
def test_interrupted_saved_and_resumed_is_uninterrupted(model, recipe: str, tmp_path) -> None:
    known, work = model("qwen3"), job(100, recipe=parse(f"{recipe}+minicache"))
    whole, _ = run(known, work, place=tmp_path / "whole.kv")
    interrupted(known, work, 40, place=tmp_path / "part.kv")
    resumed, seen = run(known, work, place=tmp_path / "part.kv")
    assert resumed.cache == "resumed", seen
    again, _ = run(known, work, place=tmp_path / "whole.kv")
    assert again.cache == "hit"
    same(known, whole, resumed)
    same(known, whole, again)
    most = disk.disk_bytes(known.spec, work.recipe, tokens=100, chunk=16, text=8192)
    assert (tmp_path / "whole.kv").stat().st_size <= most
    longer = job(140, recipe=work.recipe)
    same(known, run(known, longer, base=tmp_path / "whole.kv")[0], run(known, longer)[0])


@pytest.mark.parametrize("recipe", [RECIPES[1], OTHERS[0]])
def test_rewound_is_as_never_read_and_recorded_steps_are_plain_ones(model, recipe: str) -> None:
    known = model()
    context = drain(prefill(known, tiny.document(80), parse(f"{recipe}+minicache"), chunk=16, horizon=300))
    tail, plain = new_decode_cache(known, context), new_decode_cache(known, context)
    answer(known, tail, tiny.document(9), 20)
    tail.rewind(0)
    assert answer(known, tail, tiny.document(5, seed=1)) == answer(known, plain, tiny.document(5, seed=1))
    with torch.inference_mode():
        tail.reserve(100)
    step = make_decode_step(known, tail)
    for number in tiny.document(64, seed=5):
        expected = known.forward(torch.tensor([number]), plain, logits=True)
        assert distance(step(torch.tensor([number])), expected) < 1e-4
        tail.extend(1)
        plain.extend(1)


def test_evicted_turns_are_read_as_a_longer_document(model) -> None:
    known, recipe, ids = model(), parse("knorm(budget=24)+minicache"), tiny.document(96)
    cache = filled(known, ids[:64], str(recipe), 16)
    freeze_and_keep(cache, recipe)
    again = cache.copy()
    turned, copied = (drain(evict_turns(known, c, ids[64:], recipe, chunk=16)) for c in (cache, again))
    assert [layer.pos.shape[1] for layer in turned.layers] == [24] * 3
    assert torch.equal(turned.layers[1].pos, turned.layers[2].pos)
    for one, two in zip(turned.layers, copied.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.dense(), two.dense(), strict=True))


@pytest.mark.parametrize("family", ALONE)
def test_a_model_without_neighbours_is_refused(model, family: str) -> None:
    with pytest.raises(ModelError, match="no two alike from layer 1 of 3 on"):
        parse("full+minicache").for_model(model(family).spec)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("knorm(victims=merge)+minicache", "victims=merge gives evicted ones"),
        ("kvmerger+minicache", "kvmerger gives evicted ones"),
        ("full+quest+minicache", "quest stores one layer"),
        ("full+turbo(fill=true)+minicache", "stores one layer"),
        ("full+minicache(t=1.5)", "t must be from 0 to 1, got 1.5"),
        ("full+minicache(retain=-1)", "retain must be from 0 to 1"),
        ("h2o+less+minicache", "layers share keys in minicache"),
    ],
)
def test_what_cannot_be_is_one_line(recipe: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(recipe)
