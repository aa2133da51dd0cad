"""Folds: with nothing evicted they change nothing, and what they add is what a kernel of linear attention adds."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kvcli import events
from kvcli.cache.context import freeze
from kvcli.engine.decode_step import make_decode_step
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, prefill, prefill_steps
from kvcli.engine.recorded_step import RecordedStep
from kvcli.errors import UsageError
from kvcli.fold import maps
from kvcli.fold.less import Less, LessMaps
from kvcli.planning import disk, memory
from kvcli.recipe import parse
from kvcli.storage.dense import Dense
from kvcli_kernels.attention import attention
from kvcli_kernels.merge import merge
from tests import tiny
from tests.laws.helpers import answer, asked, distance, drain, filled
from tests.laws.test_prompt_cache import interrupted, job, run, same

RECIPES = ["h2o(budget=24, sinks=2)", "knorm(budget=24)", "locret(budget=24, stabilizers=8)", "corm(budget=24)"]
FOLDS = ["+less", "+clustergen(clusters=4, samples=2, values=6)"]
OTHERS = [
    "knorm(budget=24, positions=original)",
    "snapkv(budget=24, stabilizers=4)",
    "knorm(budget=24)+int8",
    "knorm(budget=24)+turbo(bits=8, fill=true)",
]


@pytest.fixture(autouse=True)
def trained(model, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random maps for every family."""
    monkeypatch.setattr(maps, "path", lambda spec: tmp_path / f"less-{spec.name}.safetensors")
    for family in tiny.FAMILIES:
        spec, made = model(family).spec, torch.Generator().manual_seed(1)
        tensors = {
            f"layers.{i}.{name}": torch.randn(shape, generator=made)
            for i, window in enumerate(spec.sliding)
            if window is None
            for name, shape in maps.shapes(spec.of_layer(i)).items()
        }
        save_file(tensors or {"none": torch.zeros(1)}, maps.path(spec))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_with_nothing_evicted_it_changes_no_bit(model, family: str) -> None:
    ids, question = tiny.document(40), tiny.document(7, seed=3)
    for recipe in ("full", "knorm(budget=40)"):
        one, *others = (asked(model(family), ids, question, recipe + fold, 16) for fold in ("", *FOLDS))
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_with_something_evicted_it_does(model, family: str) -> None:
    if all(window is not None for window in model(family).spec.sliding):
        pytest.skip("all layers of this family have a sliding window")
    ids, question = tiny.document(90), tiny.document(7, seed=3)
    one, *others = (asked(model(family), ids, question, f"knorm(budget=24){fold}", 16) for fold in ("", *FOLDS))
    for other in others:
        assert other.isfinite().all()
        assert distance(other, one) > 1e-4


def by_hand(value: float = 1.0) -> LessMaps:
    """Maps of a model with one head of one number: φ = ψ = 1 for any key and query."""
    one = torch.nn.functional.gelu(torch.tensor(1.0))
    inner = torch.linspace(0, 3, 3001)
    gelu = torch.nn.functional.gelu(inner)
    needed = inner[(gelu - 1).abs().argmin()] * value / one / maps.WIDTH  # gelu(needed · gelu(1) · WIDTH) = 1
    shared = {"2": torch.zeros(1, maps.WIDTH, maps.RANK)}
    shared["2"][..., 0] = needed
    first = torch.ones(1, 1, maps.WIDTH)
    own = {"u1": first, "u2": shared["2"], "w1": first, "w2": shared["2"]}
    own |= {"w3": torch.zeros(1, maps.RANK, maps.RANK), "a": torch.ones(1, 1, maps.RANK)}
    return LessMaps([own | {"b": torch.zeros(1, 1, maps.RANK)}])


def test_an_answer_by_hand() -> None:
    """A kept unit with logit 0 and value 0, and a folded one with weight 1 and value 2: (2 + 0) / (1 + 1) = 1."""
    known, state, one = by_hand(), {}, torch.ones(1, 1, 1)
    known.take(0, state, one, 2 * one, torch.zeros(1, 1, dtype=torch.int32))
    o, lse = known.recall(0, state, one, 1.0)
    assert torch.allclose(o, 2 * one)
    assert torch.allclose(lse, torch.zeros(1, 1), atol=2e-3)
    assert torch.allclose(merge((0 * one, torch.zeros(1, 1)), (o, lse))[0], one, atol=2e-3)


def test_a_state_is_linear_attention_in_any_order_and_split(model) -> None:
    spec = model("qwen3").spec
    known, made = Less().open(spec, torch.device("cpu")), torch.Generator().manual_seed(2)
    k, v = (torch.randn(spec.kv_heads, 50, spec.head_dim, generator=made) for _ in range(2))
    q = torch.randn(spec.heads, 9, spec.head_dim, generator=made)
    states = []
    for order, parts in ((torch.arange(50), 1), (torch.arange(50), 7), (torch.randperm(50, generator=made), 3)):
        states.append(state := {})
        for part in order.chunk(parts):
            known.take(1, state, k[:, part], v[:, part], torch.zeros(spec.kv_heads, len(part), dtype=torch.int32))
    for name, tensor in states[0].items():
        assert all(torch.allclose(state[name], tensor, rtol=1e-4, atol=1e-4) for state in states[1:])
    assert sum(t.nbytes for t in states[0].values()) == Less().state_nbytes(spec)
    group = spec.heads // spec.kv_heads
    phi, psi = known.keys(1, k).repeat_interleave(group, 0), known.queries(1, q)
    weights = psi @ phi.transpose(1, 2)
    o, lse = known.recall(1, states[0], q, 1.0)
    assert torch.allclose(lse, weights.sum(2).clamp_min(1e-6).log(), atol=1e-3)
    assert torch.allclose(o, weights @ v.repeat_interleave(group, 0) / weights.sum(2, True).clamp_min(1e-6), atol=1e-3)


class Exact:
    """A fold that keeps every unit, at its place: attention as if nothing had been evicted."""

    def __init__(self, rotary) -> None:
        self.rotary = rotary

    def take(self, layer: int, state, k, v, pos) -> None:
        for name, new in (("fold.k", self.rotary.rotate(layer, k, pos.long())), ("fold.v", v)):
            state[name] = torch.cat([state[name], new], dim=1) if name in state else new

    def recall(self, layer: int, state, q, scale: float):
        rotated = self.rotary.rotate(layer, q, range(self.first, self.first + q.shape[1]))
        return attention(rotated, state["fold.k"], state["fold.v"], scale, state["fold.k"].shape[1])


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_with_exact_terms_any_budget_is_full_attention(model, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is folded is what is evicted, and it is added once: to chunks, to questions and to answers."""
    known, ids, question = model(family), tiny.document(90), tiny.document(7, seed=3)
    exact = Exact(known.rotary)
    monkeypatch.setattr(Less, "open", lambda *_: exact)
    for recipe in RECIPES[:3]:
        exact.first, found = 0, parse(f"{recipe[:-1]}, positions=original)+less")
        steps = prefill_steps(known, ids, found, chunk=16, probe=question, horizon=97)
        cache = events.drain(steps, lambda event: setattr(exact, "first", event.done))
        tail, exact.first = new_decode_cache(known, freeze(cache, Dense())), len(ids)
        logits = known.forward(torch.tensor(question), tail, logits="all")
        assert distance(logits, asked(known, ids, question, "full", 16)) < 1e-4


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("recipe", [*RECIPES, *OTHERS])
def test_planned_bytes_are_taken(model, recipe: str, fold: str) -> None:
    spec, found = model().spec, parse(recipe + fold)
    for tokens in (20, 100, 300):
        plan = memory.plan(spec, found, tokens=tokens, chunk=16, tail=9)
        cache = filled(model(), tiny.document(tokens), str(found), 16)
        states = sum(t.nbytes for layer in cache.layers for name, t in layer.state.items() if name.startswith("fold."))
        assert states == (spec.layers * found.fold.state_nbytes(spec) if tokens > 24 else 0)
        if recipe in RECIPES[:3]:
            assert plan.prefill == cache.nbytes - cache.workspace.nbytes
        context = drain(prefill(model(), tiny.document(tokens), found, chunk=16))
        assert plan.context >= context.nbytes > states
        if recipe in RECIPES[:3]:
            assert plan.context == context.nbytes


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize(
    ("family", "recipe"), [("llama", OTHERS[3]), ("gemma3", "keydiff(budget=24, sinks=2, tail=9)")]
)
def test_interrupted_saved_and_resumed_is_uninterrupted(model, family: str, recipe: str, fold: str, tmp_path) -> None:
    known, work = model(family), job(100, recipe=parse(recipe + fold))
    whole, _ = run(known, work, place=tmp_path / "whole.kv")
    interrupted(known, work, 40, place=tmp_path / "part.kv")
    resumed, seen = run(known, work, place=tmp_path / "part.kv")
    assert resumed.cache == "resumed", seen
    again, _ = run(known, work, place=tmp_path / "whole.kv")
    assert again.cache == "hit"
    for other in (resumed, again):
        same(known, whole, other)
        for one, two in zip(whole.context.folded.states, other.context.folded.states, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)
    most = disk.disk_bytes(known.spec, work.recipe, tokens=100, chunk=16, text=8192)
    assert (tmp_path / "whole.kv").stat().st_size <= most
    longer = job(140, recipe=work.recipe)
    same(known, run(known, longer, base=tmp_path / "whole.kv")[0], run(known, longer)[0])


@pytest.mark.parametrize(
    "recipe", [f"{RECIPES[1]}+less", *(f"{recipe}+less" for recipe in OTHERS[2:]), f"{RECIPES[1]}+clustergen"]
)
def test_rewound_is_as_never_read_and_recorded_steps_are_plain_ones(model, recipe: str) -> None:
    known = model()
    context = drain(prefill(known, tiny.document(80), parse(recipe), chunk=16, horizon=300))
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
    assert not isinstance(step, RecordedStep) or step.calls


def test_evicted_turns_are_folded(model) -> None:
    known, recipe, ids = model(), parse("knorm(budget=24)+less"), tiny.document(96)
    cache = filled(known, ids[:64], str(recipe), 16)
    before = freeze_and_keep(cache, recipe).folded
    held = [state["fold.mass"].clone() for state in before.states]
    after = drain(evict_turns(known, cache, ids[64:], recipe, chunk=16)).folded
    for old, state, copy in zip(before.states, after.states, held, strict=True):
        assert torch.equal(old["fold.mass"], copy), "a context does not change"
        assert bool((state["fold.mass"] >= copy).all())
        assert not torch.equal(state["fold.mass"], copy)


@pytest.mark.parametrize(
    "recipe", ["knorm(victims=merge)+less", "kvmerger+less", "h2o+less+kvsharer(map=0_0_2)", "full+less+minference"]
)
def test_what_cannot_be_together_is_one_line(recipe: str) -> None:
    with pytest.raises(UsageError, match=r"'\+less' adds evicted KV pairs to attention, but"):
        parse(recipe)
