"""Layers that use the keys of a higher layer: as many passes as tokens are single tokens, whatever else happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface

from kvcli.cache.context import freeze
from kvcli.cache.prefill_cache import attend_earlier
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep
from kvcli.errors import ModelError
from kvcli.models import condensed
from kvcli.models.model import Model
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.retrieval.attention import narrow_context, question_attention
from kvcli.retrieval.attribution import answer_attention
from tests import tiny
from tests.laws.helpers import answer, asked, distance, drain, filled
from tests.laws.test_prompt_cache import interrupted, job, run, same

MAPS = [(0, 2, 2), (1, 1, 2), (2, 2, 2), (1, 1, 1)]
RECIPES = ["full", "knorm(budget=24)", "h2o(budget=24, sinks=2)", "snapkv(budget=24, stabilizers=4)", "full+kivi"]


def shared(owners: tuple[int, ...], family: str = "llama", passes: int = 9) -> Model:
    made = tiny.load(family)
    made.spec = replace(made.spec, owners=owners, passes=passes)
    return made


@torch.inference_mode()
def one_by_one(model: Model, ids: list[int]) -> torch.Tensor:
    """Logits of single tokens, each of which sees its own keys only where its layer or a lower one has made them."""
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {i: [] for i in range(model.spec.layers)}

    def attend(module, q, k, v, _mask, scaling=None, **_):
        if model.spec.owners[module.layer_idx] == module.layer_idx:
            seen[module.layer_idx].append((k, v))
        if not (units := seen[model.spec.owners[module.layer_idx]]):
            return torch.zeros_like(q).transpose(1, 2), None
        k, v = (torch.cat(x, dim=2).repeat_interleave(q.shape[1] // k.shape[1], 1) for x in zip(*units, strict=True))
        weights = q @ k.transpose(2, 3) * (scaling or q.shape[-1] ** -0.5)
        return (weights.softmax(-1) @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register("one_by_one", attend)
    with model.reference() as module:
        module.set_attn_implementation("one_by_one")
        rows = [
            module(input_ids=torch.tensor([[n]]), position_ids=torch.tensor([[at]]), use_cache=False).logits[0, 0]
            for at, n in enumerate(ids)
        ]
    return torch.stack(rows)


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("owners", MAPS)
def test_as_many_passes_as_tokens_are_single_tokens(owners: tuple[int, ...], chunk: int) -> None:
    model, ids, question = shared(owners), tiny.document(30), tiny.document(9, seed=3)
    got = asked(model, ids, question, "full", chunk)
    assert distance(got, one_by_one(model, ids + question)[-9:]) < 1e-3, "rounding grows from token to token"
    assert distance(got, asked(tiny.load("llama"), ids, question, "full", chunk)) > 1e-2, "it shares"


@pytest.mark.parametrize("family", ["llama-mha", "qwen2", "qwen3", "phi3-longrope"])
def test_other_families_too(family: str) -> None:
    model, ids, question = shared((0, 2, 2), family), tiny.document(30), tiny.document(9, seed=3)
    got = asked(model, ids, question, "full", 8)
    assert distance(got, one_by_one(model, ids + question)[-9:]) < 1e-4


def test_more_passes_come_nearer() -> None:
    ids, question = tiny.document(30), tiny.document(9, seed=3)
    exact = one_by_one(shared((0, 2, 2)), ids + question)[-9:]
    far = [distance(asked(shared((0, 2, 2), passes=n), ids, question, "full", 30), exact) for n in (2, 4, 30)]
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-5


def test_a_map_without_borrowers_changes_no_bit() -> None:
    ids, question = tiny.document(40), tiny.document(9, seed=3)
    one, two = (
        asked(m, ids, question, "h2o(budget=24)", 16) for m in (tiny.load("llama"), shared((0, 1, 2), passes=0))
    )
    assert torch.equal(one, two)


def test_the_first_token_sees_nothing_above() -> None:
    key = torch.ones(2, 1, 8)
    assert torch.equal(attend_earlier(torch.ones(4, 1, 8), key, key, 1.0), torch.zeros(4, 1, 8))


@pytest.mark.parametrize("recipe", RECIPES)
def test_answers_are_those_of_single_tokens_and_rewinding_is_as_never_asked(recipe: str) -> None:
    model = shared((0, 2, 2))
    context = freeze(filled(model, tiny.document(60), recipe, 8, probe=tiny.document(5)), parse(recipe).storage)
    cache, plain = new_decode_cache(model, context), new_decode_cache(model, context)
    first = answer(model, cache, tiny.document(9), 12)
    with torch.inference_mode():
        for number in tiny.document(9):
            logits = model.forward(torch.tensor([number]), plain, logits=True)
            plain.extend(1)
        cache.rewind()
        together = model.forward(torch.tensor(tiny.document(9)), cache, logits=True)
    assert distance(together, logits) < 1e-4
    cache.rewind()
    assert answer(model, cache, tiny.document(9), 12) == first


@pytest.mark.parametrize("recipe", RECIPES[:3])
@pytest.mark.parametrize("owners", [(0, 2, 2), (2, 2, 2)])
def test_only_owners_take_memory_as_planned(owners: tuple[int, ...], recipe: str) -> None:
    model = shared(owners)
    plan = memory.plan(model.spec, parse(recipe), tokens=100, chunk=16, tail=9)
    work = filled(model, tiny.document(100), recipe, 16)
    assert plan.prefill == work.nbytes - work.workspace.nbytes
    context = freeze(work, parse(recipe).storage)
    assert plan.context == context.nbytes
    alone = freeze(filled(tiny.load("llama"), tiny.document(100), recipe, 16), parse(recipe).storage)
    assert 3 * context.nbytes == len(set(owners)) * alone.nbytes


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    model, work = shared((0, 2, 2)), job(100, recipe=parse("keydiff(budget=24, sinks=2, tail=9)"))
    whole, _ = run(model, work, place=tmp_path / "whole.kv")
    interrupted(model, work, 40, place=tmp_path / "part.kv")
    resumed, _ = run(model, work, place=tmp_path / "part.kv")
    assert resumed.cache == "resumed"
    same(model, whole, resumed)
    same(model, whole, run(model, work, place=tmp_path / "whole.kv")[0])


def test_turns_are_evicted_and_attention_is_observed() -> None:
    model, recipe, ids = shared((0, 2, 2)), parse("knorm(budget=24)"), tiny.document(64)
    cache = filled(model, ids[:32], str(recipe), 8)
    freeze_and_keep(cache, recipe)
    context = drain(evict_turns(model, cache, ids[32:], recipe, chunk=8))
    one, two = context.layers[1:]
    assert one is two
    mass, _ = answer_attention(model, context, tiny.document(9, seed=1), 5)
    assert bool((mass.sum(dim=1) > 0).all())
    logits = asked(model, ids, tiny.document(9, seed=1), "full", 8)
    context = freeze(filled(model, ids, "full", 8), parse("full").storage)
    few = narrow_context(context, question_attention(model, context, tiny.document(9, seed=1)), range(64))
    assert few.layers[1] is few.layers[2]
    cache = new_decode_cache(model, few if few.kept < 64 else context)
    assert model.forward(torch.tensor(tiny.document(9, seed=1)), cache, logits="all").shape == logits.shape


@pytest.mark.parametrize(
    "recipe", ["full+kvsharer(map=0_0_2)", "full+minicache", "full+quest", "full+turbo(fill=true)"]
)
def test_terms_that_need_each_layers_keys_are_refused(recipe: str) -> None:
    with pytest.raises(ModelError, match="Layer-Condensed"):
        parse(recipe).for_model(shared((0, 2, 2)).spec)


def test_few_tokens_pass_once_each_and_many_as_published() -> None:
    spec = shared((0, 2, 2)).spec
    assert [condensed.passes(spec, n) for n in (1, 9, 11, 12, 500)] == [1, 9, 11, 9, 9]
    assert condensed.passes(tiny.load("llama").spec, 500) == 1
