"""What holds for the working set after every chunk, whatever the weights, the policy and the sizes."""

from dataclasses import fields, replace

import pytest
import torch

from kvcli import registry
from kvcli.engine import prefill as prefill_module
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import new_prefill_cache, prefill, prefill_steps
from kvcli.eviction.selection import select
from kvcli.eviction.smoothing import mean
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, asked, drain, filled

EVICTING = WIDELY_TESTED
CAUSAL = [name for name in EVICTING if registry.lookup("eviction", name).scores_are_final]
SINGLE = {"locret": ", pool=1"}  # the laws of scores that a unit has from itself alone


def snapshots(model, ids, recipe: str, chunk: int):
    """(event, per-layer places) after every chunk."""
    made = []
    original = prefill_module.PrefillCache

    class Watched(original):  # the fill is the engine's own; the test only keeps a hand on it
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    prefill_module.PrefillCache = Watched
    try:
        for event in prefill_steps(model, ids, parse(recipe), chunk=chunk):
            yield event, [layer.pos[:, : layer.count].clone() for layer in made[0].layers]
    finally:
        prefill_module.PrefillCache = original


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize(("chunk", "budget"), [(16, 24), (7, 24), (40, 24), (3, 30)])
def test_length_order_and_stabilizers(model, policy: str, chunk: int, budget: int) -> None:
    ids = tiny.document(100)
    for event, places in snapshots(model(), ids, f"{policy}(budget={budget}, stabilizers=8, sinks=2)", chunk):
        for pos in places:
            assert pos.shape[1] == min(budget, event.done), "cache length is min(budget, seen)"
            assert bool((pos.diff(dim=1) > 0).all()), "slots are in document order"
            assert bool((pos[:, :2] == torch.tensor([0, 1])).all()), "sinks stay"
            if event.done < len(ids):
                newest = torch.arange(max(0, event.done - 8), event.done)
                assert bool((pos[:, -len(newest) :] == newest).all()), "the newest stabilizers are contiguous"


@pytest.mark.parametrize("policy", EVICTING)
def test_the_last_chunk_has_no_stabilizers(model, policy: str) -> None:
    """By score alone, but for sinks and the newest units that a policy promises to keep: the top of its scores."""
    ids = tiny.document(60)
    whole = filled(model(), ids, f"{policy}(budget=60, stabilizers=8)", chunk=60)
    cut = filled(model(), ids, f"{policy}(budget=20, stabilizers=8)", chunk=60)
    for one, two in zip(whole.layers, cut.layers, strict=True):
        sinks = 4 if policy == "streaming" else 0
        best = select(one.scores[:, :60], 20, sinks=one.pos[:, :60] < sinks, recent=cut.policy.newest)
        assert torch.equal(best.int(), two.pos[:, :20])


@pytest.mark.parametrize("policy", CAUSAL)
@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_causal_scores_do_not_depend_on_later_tokens(model, policy: str, chunk: int) -> None:
    ids = tiny.document(60)
    other = ids[:40] + tiny.document(20, seed=9)
    a = filled(model(), ids, f"{policy}(budget=60, stabilizers=0)", chunk)
    b = filled(model(), other, f"{policy}(budget=60, stabilizers=0)", chunk)
    final = 40 - a.policy.lookahead
    for one, two in zip(a.layers, b.layers, strict=True):
        assert torch.allclose(one.scores[:, :final], two.scores[:, :final], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 16, 33])
def test_smoothed_scores_are_the_mean_over_neighbours_whatever_the_chunks(model, chunk: int) -> None:
    ids = tiny.document(60)
    alone = filled(model(), ids, "locret(budget=60, stabilizers=0, pool=1)", 60)
    work = filled(model(), ids, "locret(budget=60, stabilizers=0, pool=7)", chunk)
    for one, two in zip(alone.layers, work.layers, strict=True):
        for t in range(60):
            mean = one.scores[:, max(0, t - 3) : t + 4].mean(dim=1)
            assert torch.allclose(two.scores[:, t], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 16, 33])
def test_what_stays_has_the_smoothed_score_of_the_whole_text(model, chunk: int) -> None:
    """Late scores reach the right units, also where every head keeps others."""
    ids, recorded = list(range(3, 93)), {}
    recipe = parse("locret(budget=20, stabilizers=4, pool=7)")
    cls = type(recipe.policy)

    class Recording(cls):
        def score(self, unit):
            scores = super().score(unit)
            recorded.setdefault(unit.layer, []).append(scores.float())
            return scores

    keep = Recording(**{f.name: getattr(recipe.policy, f.name) for f in fields(recipe.policy)})
    work = drain(prefill_steps(model(), ids, replace(recipe, policy=keep), chunk=chunk))
    for layer in work.layers:
        scores = mean(torch.cat(recorded[layer.index], dim=1), 7)
        kept = layer.pos[:, : layer.count].long()
        assert torch.allclose(layer.scores[:, : layer.count], scores.gather(1, kept), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["random", "streaming"])
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_scores_of_place_alone_do_not_depend_on_chunking(model, policy: str, chunk: int) -> None:
    ids = tiny.document(60)
    a = filled(model(), ids, f"{policy}(budget=20, stabilizers=0)", chunk)
    b = filled(model(), ids, f"{policy}(budget=20, stabilizers=0)", 60)
    for one, two in zip(a.layers, b.layers, strict=True):
        assert torch.equal(one.pos, two.pos)


@pytest.mark.parametrize("policy", CAUSAL)
@pytest.mark.parametrize("chunk", [4, 16, 33])
def test_streaming_selection_is_offline_selection(model, policy: str, chunk: int) -> None:
    """Without stabilizers, the kept set is the top of all scores ever given; scores are recorded as they are made."""
    ids, budget, recorded = list(range(3, 93)), 20, {}  # all different: equal tokens would tie in the first layer
    recipe = parse(f"{policy}(budget={budget}, stabilizers=0{SINGLE.get(policy, '')})")
    cls = type(recipe.policy)

    class Recording(cls):
        def score(self, unit):
            scores = super().score(unit)
            recorded.setdefault(unit.layer, []).append(scores.float())
            return scores

    keep = Recording(**{f.name: getattr(recipe.policy, f.name) for f in fields(recipe.policy)})
    work = drain(prefill_steps(model(), ids, replace(recipe, policy=keep), chunk=chunk))
    for layer in work.layers:
        scores = torch.cat(recorded[layer.index], dim=1)
        assert scores.shape[1] == len(ids)
        places = torch.arange(len(ids)).expand_as(scores)
        assert torch.equal(select(scores, budget, sinks=places < keep.sinks).int(), layer.pos[:, :budget])


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("chunk", [8, 32])
def test_compact_positions_never_exceed_budget_chunk_and_tail(model, policy: str, chunk: int) -> None:
    used = []
    rotary = model().rotary
    original = rotary.rotate

    def watched(layer, x, positions):
        used.append(positions)
        return original(layer, x, positions)

    rotary.rotate = watched
    try:
        probe = tiny.document(6, seed=5)
        recipe = parse(f"{policy}(budget=24, stabilizers=4, tail=5)")
        context = drain(prefill(model(), tiny.document(200), recipe, chunk=chunk, probe=probe))
        reading = max(p.stop for p in used)
        used.clear()
        tail = new_decode_cache(model(), context)
        for _ in range(3):
            model().forward(torch.tensor(tiny.document(7)), tail, logits=False)
            tail.extend(7)
    finally:
        del rotary.rotate
    assert reading <= 24 + max(chunk, 5) + len(probe)
    assert max(p.stop for p in used) <= 24 + 5 + 21


def test_original_positions_are_those_of_the_document(model) -> None:
    """Keys that survive are rotated to where they stood: dropping units equals masking them in a full forward."""

    ids, question = tiny.document(80), tiny.document(6, seed=1)
    kept = asked(model(), ids, question, "streaming(budget=30, sinks=4, positions=original)", chunk=80)
    module = model().module
    keep = torch.cat([torch.arange(4), torch.arange(80 - 26, 80), torch.arange(80, 86)])
    with torch.inference_mode(), model().reference():
        mask = torch.zeros(86, 86).masked_fill(torch.ones(86, 86).triu(1).bool(), float("-inf"))
        mask[80:, [i for i in range(86) if i not in set(keep.tolist())]] = float("-inf")
        expected = module(input_ids=torch.tensor([ids + question]), attention_mask=mask[None, None], use_cache=False)
    assert torch.allclose(kept, expected.logits[0, -6:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", EVICTING)
def test_the_protected_tail_stays_whole(model, policy: str) -> None:
    work = filled(model(), tiny.document(90), f"{policy}(budget=20, tail=15)", chunk=16)
    for layer in work.layers:
        assert layer.count == 35
        assert torch.equal(layer.pos[0, 20:35], torch.arange(75, 90, dtype=torch.int32))


def test_sliding_layers_keep_their_window(model) -> None:
    work = filled(model("gemma3"), tiny.document(90), "knorm(budget=20)", chunk=16)
    counts = [layer.count for layer in work.layers]
    assert counts == [15, 20, 15]
    assert torch.equal(work.layers[0].pos[0, :15], torch.arange(75, 90, dtype=torch.int32))


@pytest.mark.parametrize("policy", EVICTING)
def test_memory_does_not_grow_with_the_document(model, policy: str) -> None:
    sizes = {n: filled(model(), tiny.document(n), f"{policy}(budget=32)", chunk=16).nbytes for n in (64, 400)}
    assert sizes[64] == sizes[400]


def test_the_probe_leaves_no_trace_but_scores(model) -> None:
    """A question that follows each chunk changes which units stay, never what the units are."""
    ids = tiny.document(60)
    plain = filled(model(), ids, "snapkv(budget=60)", chunk=16)
    probed = filled(model(), ids, "snapkv(budget=60)", chunk=16, probe=tiny.document(8, seed=3))
    for one, two in zip(plain.layers, probed.layers, strict=True):
        assert torch.allclose(one.k, two.k, atol=1e-5)
        assert torch.allclose(one.v, two.v, atol=1e-5)
        assert not torch.allclose(one.scores, two.scores)


def test_attention_mass_is_the_attention(model) -> None:
    """The columns that h2o sums are those of the eager softmax."""
    ids = tiny.document(40)
    work = filled(model(), ids, "h2o(budget=40)", chunk=40)
    module = model().module
    with torch.inference_mode(), model().reference():
        module.set_attn_implementation("eager")
        weights = module(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    for layer, expected in zip(work.layers, weights, strict=True):
        columns = expected[0].sum(dim=1).view(2, 2, 40).mean(dim=1)
        assert torch.allclose(layer.scores, columns, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", ["full", *EVICTING])
def test_an_interrupted_reading_goes_on_as_if_nothing_had_happened(model, policy: str) -> None:
    """From a copy taken at any chunk boundary, to the same units, bit for bit."""
    ids, probe = tiny.document(100), tiny.document(6, seed=3)
    recipe = parse(policy if policy == "full" else f"{policy}(budget=24, stabilizers=8, tail=9)")
    whole = drain(prefill_steps(model(), ids, recipe, chunk=16, probe=probe))
    for stop in (1, 3, 6):
        work = new_prefill_cache(
            model(), recipe, len(ids), chunk=16, probe=len(probe) if recipe.policy.query_aware else 0
        )
        reading = prefill_steps(model(), ids, recipe, chunk=16, probe=probe, resume=work)
        for _ in range(stop):
            next(reading)
        interrupted = work.copy()
        reading.close()
        resumed = drain(prefill_steps(model(), ids, recipe, chunk=16, probe=probe, resume=interrupted))
        assert resumed is interrupted
        for one, two in zip(whole.layers, resumed.layers, strict=True):
            assert one.count == two.count
            for a, b in ((one.k, two.k), (one.v, two.v), (one.scores, two.scores), (one.pos, two.pos)):
                assert torch.equal(a[:, : one.count], b[:, : one.count])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_every_recipe_evicts_on_every_family(model, family: str, policy: str, positions: str) -> None:
    recipe = f"{policy}(budget=20, stabilizers=4, positions={positions})"
    logits = asked(model(family), tiny.document(90), tiny.document(6, seed=1), recipe, chunk=16)
    assert bool(logits.isfinite().all())
    work = filled(model(family), tiny.document(90), recipe, chunk=16)
    for layer in work.layers:
        assert layer.count == (20 if layer.window is None else layer.window - 1)
        assert bool((layer.pos[:, : layer.count].diff(dim=1) > 0).all())
