"""The laws of eviction policies that are not tested on every family: on few models, each law for each policy."""

from pathlib import Path

import pytest
import torch

from kvcli import registry
from kvcli.cache.context import freeze
from kvcli.engine.prefill import evict_turns, freeze_and_keep, new_prefill_cache, prefill_steps
from kvcli.planning import disk, memory
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.request import request_key
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, asked, distance, drain, filled, reference
from tests.laws.test_prompt_cache import interrupted, job, run, same

SETTINGS = {"cascade": "levels=3", "corm": "window=20"}
KEEPS_ALL = {"corm": "share=0", "pyramidkv": "pyramid=0"}  # with a budget of the whole text
NEWER = [name for name in registry.names("eviction") if name not in ("full", *WIDELY_TESTED)] + ["matching"]
PROBE = tiny.document(6, seed=3)


def recipe(name: str, budget: int = 24, options: str = "") -> str:
    fields = [f"budget={budget}", options, SETTINGS.get(name, "")]
    if name == "matching":  # a choice of every policy
        name, fields = "keydiff", [*fields, "victims=match"]
    return f"{name}({', '.join(filter(None, fields))})"


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("policy", NEWER)
def test_with_a_budget_of_the_whole_text_nothing_is_lost(model, family: str, policy: str) -> None:
    body, question = tiny.document(70), tiny.document(9, seed=1)
    got = asked(model(family), body, question, recipe(policy, 70, KEEPS_ALL.get(policy, "")), 16)
    assert distance(got, reference(model(family), body + question)[-9:]) < 1e-5


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("policy", NEWER)
def test_what_is_kept_is_in_order_within_the_budget_and_finite(model, family: str, policy: str, positions: str) -> None:
    text = recipe(policy, options=f"stabilizers=4, sinks=2, positions={positions}")
    logits = asked(model(family), tiny.document(90), tiny.document(6, seed=1), text, 16)
    assert bool(logits.isfinite().all())
    work = filled(model(family), tiny.document(90), text, 16)
    for layer, budget in zip(work.layers, work.budgets, strict=True):
        if layer.window is None:
            assert layer.count == budget or (policy == "corm" and layer.count < budget)
            pos = layer.pos[:, : layer.count]
            assert bool((pos.diff(dim=1) > 0).all())
            assert bool((pos[:, :2] == torch.tensor([0, 1])).all()), "sinks stay"
            newest = work.policy.newest
            assert bool((pos[:, layer.count - newest :] == torch.arange(90 - newest, 90)).all())


@pytest.mark.parametrize("policy", NEWER)
def test_stabilizers_stay_between_chunks(model, policy: str) -> None:
    text = parse(recipe(policy, options="stabilizers=8, sinks=2"))
    work = new_prefill_cache(model(), text, 100, chunk=7)
    for event in prefill_steps(model(), tiny.document(100), text, chunk=7, resume=work):
        for layer in work.layers:
            count = min(8, event.done)
            if event.done < 100:
                newest = torch.arange(event.done - count, event.done)
                assert bool((layer.pos[:, layer.count - count : layer.count] == newest).all())


@pytest.mark.parametrize("policy", NEWER)
def test_saved_resumed_and_continued_prefills_are_as_uninterrupted_ones(model, policy: str, tmp_path: Path) -> None:
    family = "gemma3"  # layers with and without windows
    work, library = job(recipe=parse(recipe(policy, options="sinks=2, tail=9"))), CacheDirectory(tmp_path)
    place = library.path(request_key(model(family), work))
    straight, _ = run(model(family), work)
    interrupted(model(family), work, 48, place=place, library=library)
    resumed, _ = run(model(family), work, place=place, library=library)
    assert resumed.cache == "resumed"
    same(model(family), straight, resumed)
    same(model(family), straight, run(model(family), work, place=place, library=library)[0])
    planned = disk.disk_bytes(model(family).spec, work.recipe, tokens=100, chunk=16, text=len(work.text) + 200)
    assert place.stat().st_size <= planned
    longer = job(130, recipe=work.recipe)
    on, _ = run(model(family), longer, place=library.path(request_key(model(family), longer)), library=library)
    assert on.cache == "resumed"
    same(model(family), run(model(family), longer)[0], on)


@pytest.mark.parametrize("policy", ["full", *WIDELY_TESTED, *NEWER])
def test_planned_bytes_are_those_taken(model, policy: str) -> None:
    text = "full" if policy == "full" else recipe(policy, KEEPS_ALL_BYTES.get(policy, 24))
    plan = memory.plan(model().spec, parse(text), tokens=200, chunk=16, tail=0, probe=6)
    work = filled(model(), tiny.document(200), text, 16, probe=PROBE)
    assert work.nbytes - work.workspace.nbytes <= plan.prefill
    if policy not in ("corm", "sirllm"):  # a limit is no size, nor is a usual chunk
        assert work.nbytes - work.workspace.nbytes == plan.prefill
        assert freeze(work, parse(text).storage).nbytes == plan.context


KEEPS_ALL_BYTES = {"locret": 40}  # so that its scores of 16 neighbours exist


@pytest.mark.parametrize("policy", NEWER)
def test_turns_are_evicted_as_one_longer_document(model, policy: str) -> None:
    text = parse(recipe(policy, options="sinks=2"))
    ids = tiny.document(112)
    document = new_prefill_cache(model(), text, 160, chunk=16)
    events = prefill_steps(model(), tiny.document(112) + tiny.document(48, seed=2), text, chunk=16, resume=document)
    while document.seen < 112:
        next(events)
    work = new_prefill_cache(model(), text, 0, chunk=16)
    for part in (ids[:32], ids[32:80], ids[80:]):
        context = drain(evict_turns(model(), work, part, text, chunk=16))
    whole = freeze_and_keep(document, text)
    for one, two in zip(context.layers, whole.layers, strict=True):
        assert torch.equal(one.pos, two.pos)
        assert torch.equal(one.k, two.k)
        assert torch.equal(one.v, two.v)


@pytest.mark.parametrize("policy", NEWER)
def test_memory_does_not_grow_with_the_document(model, policy: str) -> None:
    sizes = [filled(model(), tiny.document(n), recipe(policy), 16).nbytes for n in (176, 304)]
    assert sizes[0] == sizes[1] or (policy == "corm" and max(sizes) < 1.05 * min(sizes))
