"""Absorbing a tail is reading a longer document, and a conversation of any length stays at fixed memory."""

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, new_prefill_cache, prefill_steps
from kvcli.errors import InputError
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, distance, drain, filled, reference

EVICTING = WIDELY_TESTED
FAMILIES = ["llama", "gemma3", "mistral-window", "phi3-longrope", "smollm3"]


def behind(model, context, ids: list[int]):
    """Logits ``[n, vocab]`` of ids behind a context."""
    logits = model.forward(torch.tensor(ids), new_decode_cache(model, context), logits="all")
    assert logits is not None
    return logits


def same(one, two) -> bool:
    """Whether two fills hold the same units with the same scores, bit for bit."""
    pairs = [
        (getattr(a, name)[:, : a.count], getattr(b, name)[:, : b.count])
        for a, b in zip(one.layers, two.layers, strict=True)
        for name in ("k", "v", "scores", "pos")
    ]
    return one.seen == two.seen and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("family", FAMILIES)
def test_absorbing_equals_reading_the_same_ids_in_one_document(model, family: str, policy: str) -> None:
    """Where the document ends between two chunks and its last chunk differs by no stabilizers: bit for bit."""
    ids, recipe = tiny.document(112), f"{policy}(budget=24, stabilizers=0, sinks=2)"
    whole = filled(model(family), ids, recipe, 16, horizon=160)
    work = filled(model(family), ids[:48], recipe, 16, horizon=160)
    freeze_and_keep(work, parse(recipe))
    for part in (ids[48:80], ids[80:]):
        context = drain(evict_turns(model(family), work, part, parse(recipe), chunk=16))
    assert same(work, whole)
    question = tiny.document(9, seed=3)
    assert torch.equal(
        behind(model(family), context, question),
        behind(model(family), freeze_and_keep(whole, parse(recipe)), question),
    )


@pytest.mark.parametrize("policy", EVICTING)
def test_a_conversation_without_a_document_is_read_like_one_from_the_middle(model, policy: str) -> None:
    """Into an empty fill, stabilizers included: as a document is read of which there is more to come."""
    ids, recipe = tiny.document(120), parse(f"{policy}(budget=24, stabilizers=6)")
    events = prefill_steps(
        model(), ids, recipe, chunk=16, resume=(document := new_prefill_cache(model(), recipe, 120, chunk=16))
    )
    while document.seen < 80:
        next(events)
    work = new_prefill_cache(model(), recipe, 0, chunk=16)
    for part in (ids[:32], ids[32:80]):
        drain(evict_turns(model(), work, part, recipe, chunk=16))
    assert same(work, document)


@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=200)"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_room_for_all_of_it_the_logits_are_those_of_one_forward(model, family: str, recipe: str) -> None:
    ids, question = tiny.document(100), tiny.document(9, seed=3)
    model(family).rotary.fix_length(109)
    work = filled(model(family), ids[:41], recipe, 16, horizon=109)
    for part in (ids[41:60], ids[60:]):
        context = drain(evict_turns(model(family), work, part, parse(recipe), chunk=16))
    assert distance(behind(model(family), context, question), reference(model(family), ids + question)[100:]) < 1e-4


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_the_chunks_of_a_tail_are_counted(model, policy: str, positions: str) -> None:
    recipe = f"{policy}(budget=24, positions={positions})"
    work = filled(model(), tiny.document(50), recipe, 16)
    events = list(evict_turns(model(), work, tiny.document(40, seed=4), parse(recipe), chunk=16))
    assert [(e.done, e.total, e.kept) for e in events] == [(16, 40, 24), (32, 40, 24), (40, 40, 24)]
    context = freeze_and_keep(work, parse(recipe))
    assert (context.seen, context.kept) == (90, 24)
    assert set(context.starts) == {24 if positions == "compact" else 90}


def test_the_context_at_hand_is_not_touched(model) -> None:
    recipe = parse("keydiff(budget=24)")
    work = filled(model(), tiny.document(50), str(recipe), 16)
    context = freeze_and_keep(work, recipe)
    question = tiny.document(9, seed=3)
    before = behind(model(), context, question)
    drain(evict_turns(model(), work, tiny.document(40, seed=4), recipe, chunk=16))
    assert torch.equal(before, behind(model(), context, question))


def test_nothing_to_absorb(model) -> None:
    with pytest.raises(InputError, match="no tokens"):
        drain(evict_turns(model(), filled(model(), tiny.document(50), "full", 16), [], parse("full")))
