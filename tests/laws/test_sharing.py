"""Layers that use another layer's units: a map that shares nothing changes nothing, and one that shares is the model
with these keys and values replaced."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from transformers import AttentionInterface

from benchmarks import small_models
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.observer import Observer
from kvcli.engine.prefill import evict_turns, freeze_and_keep, prefill
from kvcli.engine.recorded_step import RecordedStep
from kvcli.models.load import wrap
from kvcli.planning import memory
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.recipe import parse
from kvcli.retaining_heads import sharing
from kvcli.retrieval.attention import narrow_context
from kvcli.retrieval.attribution import answer_attention
from kvcli.share import maps
from tests import tiny
from tests.laws.helpers import answer, asked, distance, drain, filled, reference
from tests.laws.test_prompt_cache import interrupted, job, run, same

MAPS = {"gemma3": "0_1_0"}
SHARED = "0_0_1"
"""A chain: all three layers use layer 0."""
RECIPES = ["full", "knorm(budget=24)", "h2o(budget=24, sinks=2)", "locret(budget=24, stabilizers=8)", "full+int8"]
CODED = ["knorm(budget=24)+turbo(bits=8, fill=true)", "full+quest(page=4, pages=3, dense=1)"]


def shared(recipe: str, family: str = "llama") -> str:
    return f"{recipe}+kvsharer(map={MAPS.get(family, SHARED)})"


@torch.inference_mode()
def replaced(model, ids: list[int], owners: tuple[int, ...]) -> torch.Tensor:
    """Logits of a full forward in which borrowers' keys and values, RoPE included, are their owners'."""
    seen = {}

    def attend(module, q, k, v, _mask, scaling=None, **_):
        seen[module.layer_idx] = k, v
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in seen[owners[module.layer_idx]])
        weights = q @ k.transpose(2, 3) * (scaling or q.shape[-1] ** -0.5)
        distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
        window = model.spec.sliding[module.layer_idx] or len(ids)
        weights = weights.masked_fill((distance < 0) | (distance >= window), -torch.inf)
        return (weights.softmax(-1) @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register("replaced", attend)
    with model.reference() as module:
        module.set_attn_implementation("replaced")
        return module(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("recipe", [*RECIPES, *CODED])
def test_a_map_without_borrowers_changes_no_bit(model, recipe: str) -> None:
    ids, question = tiny.document(90), tiny.document(7, seed=3)
    one, two = (asked(model(), ids, question, r, 16) for r in (recipe, f"{recipe}+kvsharer(map=0_1_2)"))
    assert torch.equal(one, two)


@pytest.mark.parametrize("chunk", [16, 200])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_is_the_model_with_these_keys_and_values_replaced(model, family: str, chunk: int) -> None:
    ids, question = tiny.document(90), tiny.document(12, seed=3)
    known = model(family)
    owners = maps.parse(MAPS.get(family, SHARED))
    for policy in ("full", "keydiff(budget=90)"):
        got = asked(known, ids, question, shared(policy, family), chunk)
        assert distance(got, replaced(known, ids + question, owners)[-len(question) :]) < 1e-4
    assert distance(got, asked(known, ids, question, "full", chunk)) > 1e-2, "it shares"


@pytest.mark.parametrize("recipe", [*RECIPES, *CODED])
def test_an_owner_keeps_what_it_would_keep_alone(model, recipe: str) -> None:
    """The layer below all borrowers reads and evicts as without them."""
    ids = tiny.document(100)
    one, two = (filled(model(), ids, r, 16).layers for r in (recipe, shared(recipe)))
    c = one[0].count
    assert c == two[0].count
    assert torch.equal(one[0].pos[:, :c], two[0].pos[:, :c])
    assert torch.equal(one[0].k[:, :c], two[0].k[:, :c])
    assert [layer.count for layer in two[1:]] == [0, 0]
    assert sum(layer.nbytes for layer in two[1:]) == 0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("text", ["0_0_2", "0_1_0", SHARED])
def test_planned_bytes_are_taken_and_fall_with_the_borrowers(model, recipe: str, text: str) -> None:
    spec, left = model().spec, len(set(maps.parse(text)))
    plan, whole = (
        memory.plan(spec, parse(r), tokens=300, chunk=16, tail=30) for r in (f"{recipe}+kvsharer(map={text})", recipe)
    )
    cache = filled(model(), tiny.document(300), f"{recipe}+kvsharer(map={text})", 16)
    assert plan.prefill == cache.nbytes - cache.workspace.nbytes == whole.prefill * left // 3
    assert plan.answer == whole.answer * left // 3
    context = drain(prefill(model(), tiny.document(300), parse(f"{recipe}+kvsharer(map={text})"), chunk=16))
    assert plan.context == context.nbytes == whole.context * left // 3
    tail = new_decode_cache(model(), context)
    answer(model(), tail, tiny.document(9), 21)
    assert tail.nbytes == 30 * spec.row_bytes * left // 3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rewound_is_as_never_read(model, family: str) -> None:
    known = model(family)
    context = drain(prefill(known, tiny.document(80), parse(shared("knorm(budget=24)", family)), chunk=16))
    tail, fresh = new_decode_cache(known, context), new_decode_cache(known, context)
    answer(known, tail, tiny.document(9), 20)
    tail.rewind(0)
    assert answer(known, tail, tiny.document(5, seed=1)) == answer(known, fresh, tiny.document(5, seed=1))


@pytest.mark.parametrize(("family", "after"), [("llama", 40), ("gemma3", 75)])
def test_interrupted_saved_and_resumed_is_uninterrupted(model, family: str, after: int, tmp_path) -> None:
    known, recipe = model(family), parse(shared("keydiff(budget=24, stabilizers=8, sinks=2, tail=9)", family))
    work = job(100, recipe=recipe)
    whole, _ = run(known, work, place=tmp_path / "whole.kv")
    interrupted(known, work, after, place=tmp_path / "part.kv")
    resumed, events = run(known, work, place=tmp_path / "part.kv")
    assert resumed.cache == "resumed", events
    again, _ = run(known, work, place=tmp_path / "whole.kv")
    assert again.cache == "hit"
    same(known, whole, resumed)
    same(known, whole, again)
    longer = job(140, recipe=recipe)
    same(known, run(known, longer, base=tmp_path / "whole.kv")[0], run(known, longer)[0])


def test_recorded_steps_are_plain_ones(model) -> None:
    known = model()
    context = drain(prefill(known, tiny.document(80), parse(shared("knorm(budget=24)")), chunk=16, horizon=300))
    tail, plain = new_decode_cache(known, context), new_decode_cache(known, context)
    ids = tiny.document(30, seed=5)
    for cache in (tail, plain):
        cache.reserve(64)
        known.forward(torch.tensor(ids[:4]), cache, logits=False)
        cache.extend(4)
    step = RecordedStep(known, tail)
    for token in ids[4:]:
        logits = step(torch.tensor([token]))
        tail.extend(1)
        expected = known.forward(torch.tensor([token]), plain, logits=True)
        plain.extend(1)
        assert expected is not None
        assert distance(logits.flatten(), expected) < 1e-5
    assert step.calls is not None, "no step was recorded"


def test_citations_and_narrowed_contexts_share_too(model) -> None:
    known, ids, question = model(), tiny.document(60), tiny.document(9, seed=1)
    context = drain(prefill(known, ids, parse(shared("full")), chunk=16))
    mass, units = answer_attention(known, context, question, 2)
    assert torch.allclose(mass.sum(1) > 0, torch.tensor([True] * 3))
    assert bool((units == known.spec.kv_heads).all())
    tail = new_decode_cache(known, context)
    logits = known.forward(torch.tensor(question), tail, logits="all")
    assert logits is not None
    observer = Observer(known.rotary, context, [(len(question), 0)], "prob")
    observed = known.forward(torch.tensor(question), observer, logits="all")
    assert observed is not None
    assert distance(observed, logits) < 1e-5
    seen = narrow_context(context, observer.labels, range(2000))
    assert seen.kept < context.kept
    assert seen.layers[1] is seen.layers[0]
    assert seen.owners == context.owners
    assert seen.nbytes < context.nbytes


def test_evicted_turns_are_read_as_a_longer_document(model) -> None:
    known, recipe = model(), parse(shared("knorm(budget=24)"))
    ids = tiny.document(96)
    cache = filled(known, ids[:64], str(recipe), 16)
    freeze_and_keep(cache, recipe)
    turned = drain(evict_turns(known, cache, ids[64:], recipe, chunk=16))
    assert [layer.pos.shape[1] for layer in turned.layers] == [24] * 3
    assert turned.layers[2] is turned.layers[0]
    again = filled(known, ids[:64], str(recipe), 16).copy()
    freeze_and_keep(again, recipe)
    assert torch.equal(drain(evict_turns(known, again, ids[64:], recipe, chunk=16)).layers[0].pos, turned.layers[0].pos)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_search_tries_the_most_unlike_layers_first(model, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known, ids = model(family), tiny.document(3 * sharing.PIECE + 5)
    monkeypatch.setattr(sharing, "SIMILAR", -1.0)  # everything is accepted
    owners, _ = drain(sharing.search(known, ids, 1))
    (borrower,) = [i for i, owner in enumerate(owners) if owner != i]
    caches = [filled(known, ids[i : i + 64], "full", 64) for i in range(0, 192, 64)]

    def apart(a: int, b: int) -> float:
        means = [sum(sharing._units(cache, i) for cache in caches) for i in (a, b)]
        return float((means[0] - means[1]).norm(dim=-1).mean())  # type: ignore[union-attr]

    pairs = {(a, b): apart(a, b) for a, b in combinations(range(3), 2) if maps.alike(known.spec, a, b)}
    assert max(pairs, key=lambda pair: pairs[pair]) == (owners[borrower], borrower)
    monkeypatch.setattr(sharing, "SIMILAR", 1.0)  # nothing is
    assert drain(sharing.search(known, ids, 1))[0] == (0, 1, 2)


E2B = {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "attention_k_eq_v": False}
"""As in Gemma 4 E2B: the last two of four layers use what the first two computed, one with a window, one without."""


@pytest.mark.parametrize("term", ["", "+kvsharer(map=0_1_2_3)", "+turbo(bits=8, fill=true)"])
def test_layers_that_a_model_shares_are_kept_once(term: str, tmp_path) -> None:
    known = wrap(small_models.build("gemma4_text", **E2B), None, name="e2b", fingerprint=None)
    assert known.spec.owners == (0, 1, 0, 1)
    ids, question = tiny.document(90), tiny.document(12, seed=3)
    limit = 0.05 if "8" in term else 1e-5
    assert distance(asked(known, ids, question, f"full{term}", 16), reference(known, ids + question)[-12:]) < limit
    recipe = f"keydiff(budget=24, stabilizers=8, tail=9){term}"
    work, planned = filled(known, ids, recipe, 16), memory.plan(known.spec, parse(recipe), tokens=90, chunk=16, tail=0)
    assert [layer.nbytes for layer in work.layers[2:]] == [0, 0]
    assert work.nbytes - work.workspace.nbytes == planned.prefill
    request = PrefillRequest(ids, parse(recipe), chunk=16, horizon=128, text="text")
    whole, _ = run(known, request, place=tmp_path / "whole.kv")
    interrupted(known, request, 40, place=tmp_path / "part.kv")
    resumed, _ = run(known, request, place=tmp_path / "part.kv")
    assert resumed.cache == "resumed"
    same(known, whole, resumed)
    same(known, whole, run(known, request, place=tmp_path / "whole.kv")[0])


def test_a_map_may_share_more_than_the_model_does() -> None:
    known = wrap(
        small_models.build("gemma4_text", **E2B, layer_types=["full_attention"] * 4), None, name="e", fingerprint=None
    )
    assert known.spec.owners == (0, 1, 1, 1)
    recipe = parse("full+kvsharer(map=0_0_2_3)")
    assert recipe.share.owners(known.spec) == (0, 0, 0, 0)
    drain(prefill(known, tiny.document(40), recipe, chunk=16))
    found, cosine = drain(sharing.search(known, tiny.document(600), 1))
    assert found in ((0, 0, 0, 0), known.spec.owners)
    assert (cosine > sharing.SIMILAR) if found[1] == 0 else cosine == 1
