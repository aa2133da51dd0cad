"""The types that people run, small and with wide weights: the laws hold for each, with transformers as the judge."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import families, small_models
from kvcli.cache.context import freeze
from kvcli.cache.prefill_cache import ChunkStep, PrefillCache, PrefillCacheLayer
from kvcli.engine.drafts import as_ids
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, new_prefill_cache, prefill
from kvcli.errors import UnsupportedModel
from kvcli.events import Answer, Token
from kvcli.models import self_test
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.random_weights import NullTokenizer
from kvcli.planning.memory import plan
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.request import PrefillRequest, request_key
from kvcli.recipe import default, parse
from tests.laws.helpers import answer, asked, distance, drain, filled, reference
from tests.laws.test_prompt_cache import interrupted, run, same

KINDS = [kind for kind, *_ in families.COMMON]
HYBRIDS = ["qwen3_5", "nemotron_h", "lfm2", "falcon_h1"]
EXACT = 2e-5


@cache
def load(kind: str) -> Model:
    return wrap(small_models.build(kind), NullTokenizer(), name=kind, fingerprint=None)


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 200, (count,), generator=generator).tolist()


@pytest.mark.parametrize("kind", dict.fromkeys([*KINDS, *HYBRIDS]))
def test_nothing_is_lost_with_a_budget_of_the_whole_text(kind: str) -> None:
    """Past the windows of 24, in chunks that divide nothing; then an answer of single steps."""
    model, body, question = load(kind), ids(130), ids(9, 1)
    assert (
        distance(asked(model, body, question, "keydiff(budget=130)", 57), reference(model, body + question)[-9:])
        < EXACT
    )
    tail = new_decode_cache(model, drain(prefill(model, body, parse("full"), chunk=57)))
    said = answer(model, tail, question, count=4)
    assert said == [int(row.argmax()) for row in reference(model, body + question + said)[-5:-1]]


@pytest.mark.parametrize("kind", dict.fromkeys([*KINDS, *HYBRIDS]))
def test_what_is_taken_is_what_was_planned(kind: str) -> None:
    """Keys and values of the layers that attend, with their windows and heads, and one state of the others."""
    model, recipe = load(kind), parse("keydiff(budget=64)")
    work = filled(model, ids(130), str(recipe), chunk=57)
    planned = plan(model.spec, recipe, tokens=130, chunk=57, tail=0)
    assert work.nbytes - work.workspace.nbytes == planned.prefill
    assert work.workspace.nbytes <= planned.workspace
    context = freeze(work, recipe.storage)
    assert context.nbytes == planned.context
    assert model.spec.state_bytes == (0 if work.state is None else work.state.nbytes)


@pytest.mark.parametrize("kind", dict.fromkeys([*KINDS, *HYBRIDS]))
def test_drafts_change_no_answer(kind: str) -> None:
    model, question = load(kind), ids(9, 1)

    def said(drafts: list[int] | None) -> tuple[list[int], int]:
        found = None if drafts is None else as_ids(drafts)
        *tokens, end = generate(model, new_decode_cache(model, None), question, max_tokens=12, drafts=found)
        assert isinstance(end, Answer)
        return [t.id for t in tokens if isinstance(t, Token) and t.id >= 0], end.steps

    plain, steps = said(None)
    wrong = [*question, *plain[:4], plain[4] + 1, *plain[5:], 7]
    assert [said([*question, *plain, 7])[0], said(wrong)[0]] == [plain, plain]
    assert said([*question, *plain, 7])[1] <= (steps if new_decode_cache(model, None).recurrent else 6)


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=40)"])
def test_a_state_goes_back_to_its_marks(kind: str, recipe: str) -> None:
    model = load(kind)
    tail = new_decode_cache(model, drain(prefill(model, ids(100), parse(recipe), chunk=30)))
    first = answer(model, tail, ids(5, 1))
    tail.rewind()
    assert answer(model, tail, ids(5, 1)) == first
    length = tail.length
    tail.mark()
    second = answer(model, tail, ids(6, 2))
    tail.rewind(length + 3)
    assert tail.length == length
    assert answer(model, tail, ids(6, 2)) == second


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_context_stays_as_it_is(kind: str) -> None:
    model = load(kind)
    context = drain(prefill(model, ids(60), parse("keydiff(budget=40)"), chunk=30))
    before = {name: tensor.clone() for name, tensor in context.state.tensors().items()}
    answer(model, new_decode_cache(model, context), ids(5, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in context.state.tensors().items())


@pytest.mark.parametrize("kind", HYBRIDS)
def test_turns_are_absorbed_as_one_longer_document(kind: str) -> None:
    model, body, turns, question = load(kind), ids(80), ids(30, 3), ids(5, 4)
    work = filled(model, body, "full", 30)
    before = freeze_and_keep(work, parse("full"))
    answer(model, new_decode_cache(model, before), turns, count=2)
    context = drain(evict_turns(model, work, turns, parse("full"), chunk=13))
    logits = model.forward(torch.tensor(question), new_decode_cache(model, context), logits="all")
    assert distance(logits, reference(model, body + turns + question)[-5:]) < EXACT


@pytest.mark.parametrize("kind", ["lfm2"])
def test_a_saved_state_is_that_of_an_uninterrupted_prefill(kind: str, tmp_path: Path) -> None:
    """Stopped in the body; taken up whole; and continued by a longer text from before its last chunk."""
    model, library, text = load(kind), CacheDirectory(tmp_path), ids(130)

    def job(count: int) -> PrefillRequest:
        recipe = parse("keydiff(budget=24, stabilizers=8, tail=9)")
        return PrefillRequest(text[:count], recipe, chunk=16, horizon=160, text="text", document={"files": ["a"]})

    for count, reused in ((100, 48), (100, 100), (130, job(100).resume_point)):
        work = job(count)
        place = library.path(request_key(model, work))
        if reused == 48:
            interrupted(model, work, reused, place=place, library=library)
        saved, _ = run(model, work, place=place, library=library)
        assert saved.reused == reused
        same(model, run(model, work)[0], saved)


def test_a_state_of_another_model_is_refused() -> None:
    model = load("lfm2")
    state = drain(prefill(model, ids(40), parse("full"), chunk=16)).state
    tensors = state.tensors()
    model.empty_state().restore(tensors)
    name = next(iter(tensors))
    wrong = ({}, tensors | {"9.conv.0": tensors[name]}, tensors | {name: tensors[name][..., :1]})
    for other in (*wrong, tensors | {name: tensors[name].half()}):
        with pytest.raises(ValueError, match=r"conv\.0"):
            model.empty_state().restore(other)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_an_interrupted_answer_can_be_taken_back(kind: str) -> None:
    model, question = load(kind), ids(5, 1)
    tail = new_decode_cache(model, drain(prefill(model, ids(40), parse("full"), chunk=30)))
    first = [event.id for event in generate(model, tail, question, max_tokens=6) if hasattr(event, "id")]
    tail.rewind()
    head = model.module.get_output_embeddings()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    steps = generate(model, tail, question, max_tokens=6)
    next(steps)
    hook = head.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(steps)
    hook.remove()
    with pytest.raises(RuntimeError, match="rewind"):
        model.forward(torch.tensor(question), tail, logits=True)
    tail.rewind(tail.length)
    assert tail.length == 0
    assert [event.id for event in generate(model, tail, question, max_tokens=6) if hasattr(event, "id")] == first


@pytest.mark.parametrize(
    ("kind", "dtype"), [("lfm2", torch.float32), ("lfm2", torch.bfloat16), ("falcon_h1", torch.bfloat16)]
)
def test_a_lost_state_is_caught_in_its_layer(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow dtypes round so much that logits alone would not tell."""
    model = wrap(small_models.build(kind).to(dtype), None, name=kind, fingerprint=None)
    monkeypatch.setattr(PrefillCache, "take_state", lambda _: model.empty_state())
    with pytest.raises(UnsupportedModel, match=r"output of model\.layers\.\d+ differs"):
        self_test.check(model, remember=False)


@pytest.mark.parametrize(
    ("kind", "changes"), [("ministral3", {}), ("gpt_oss", {}), ("mistral", {"sliding_window": 400})]
)
def test_what_the_configuration_names_is_crossed(kind: str, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that begin anew with each chunk, and windows that are not there: both seem right for 64 tokens."""
    module = small_models.build(kind, 400, **changes)
    wrap(module, None, name=kind, fingerprint=None)
    if kind == "ministral3":
        monkeypatch.setattr(PrefillCache, "position_ids", lambda _, count: torch.arange(count))
    else:
        inner = PrefillCacheLayer.attend
        without = lambda self, q, k, v, scale, _window, sink: inner(self, q, k, v, scale, None, sink)  # noqa: E731
        monkeypatch.setattr(PrefillCacheLayer, "attend", without)
    with pytest.raises(UnsupportedModel, match="windows of 24"):
        wrap(small_models.build(kind, 400, **changes), None, name=kind, fingerprint=None)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "granitemoehybrid", "qwen3_5_moe", "gemma4"])
def test_rounding_to_bfloat16_refuses_no_model(kind: str) -> None:
    wrap(small_models.build(kind).to(torch.bfloat16), None, name=kind, fingerprint=None)


def test_learned_positions_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="each of 1,024 positions"):
        load("biogpt")


@pytest.mark.parametrize("term", ["", "+int8", "+turbo(fill=true)", "+kvsharer(map=MAP)"])
@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_question_judges_units_as_in_one_pass_and_leaves_the_state_alone(kind: str, term: str) -> None:
    model, body, question = load(kind), ids(90), ids(7, 1)
    recipe = "snapkv(budget=40)" + term.replace("MAP", "_".join(["0", *map(str, range(model.spec.layers - 1))]))
    apart = filled(model, body, recipe, 90, probe=question)
    joint = new_prefill_cache(model, parse(recipe), 90, chunk=90, probe=7)
    joint.step = ChunkStep(0, 90, 7, last=True)
    model.forward(torch.tensor(body + question), joint, logits=False)
    for one, other in zip(apart.layers, joint.layers, strict=True):
        assert one.count == other.count
        assert torch.equal(one.pos[:, : one.count], other.pos[:, : one.count])
    whole = filled(model, body, "snapkv(budget=90)", 30, probe=question)
    plain = filled(model, body, "full", 30)
    assert whole.state is not None
    assert plain.state is not None
    for name, tensor in plain.state.tensors().items():
        assert torch.allclose(whole.state.tensors()[name], tensor, atol=1e-5)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_what_waits_for_a_question_is_planned(kind: str) -> None:
    model, recipe, taken = load(kind), parse("snapkv(budget=40)"), []
    inner = PrefillCacheLayer.attend

    def attend(self: PrefillCacheLayer, *args: object) -> torch.Tensor:
        out = inner(self, *args)
        taken.append(sum(t.nbytes for layer in self.cache.layers for t in layer.waiting))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefillCacheLayer, "attend", attend)
        filled(model, ids(90), str(recipe), 30, probe=ids(7, 1))
    with_question = plan(model.spec, recipe, tokens=90, chunk=30, tail=0, probe=7).workspace
    without = plan(replace(model.spec, state_bytes=0), recipe, tokens=90, chunk=30, tail=0, probe=7).workspace
    assert max(taken) == with_question - without > 0
    assert default(model.spec, questions=1).policy.query_aware
