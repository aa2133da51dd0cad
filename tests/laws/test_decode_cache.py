"""A question leaves no trace: rewinding and asking again is identical, and N questions in one run equal N runs."""

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, answer, drain

RECIPES = ["full", *(f"{name}(budget=24)" for name in WIDELY_TESTED)]


def context(model, recipe: str):
    probe = tiny.document(6, seed=2)
    return drain(prefill(model, tiny.document(80), parse(recipe), chunk=16, probe=probe, horizon=120))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3-longrope"])
def test_rewind_and_ask_again_is_bit_identical(model, family: str, recipe: str) -> None:
    tail = new_decode_cache(model(family), context(model(family), recipe))
    question = torch.tensor(tiny.document(9, seed=3))
    first = model(family).forward(question, tail, logits="all")
    answer(model(family), tail, tiny.document(5, seed=4), count=20)
    tail.rewind()
    assert torch.equal(first, model(family).forward(question, tail, logits="all"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_many_questions_in_one_run_equal_as_many_runs(model, recipe: str) -> None:
    questions = [tiny.document(7, seed=s) for s in (5, 6, 7)]
    shared = context(model(), recipe)
    tail = new_decode_cache(model(), shared)
    together = []
    for question in questions:
        tail.rewind()
        together.append(answer(model(), tail, question))
    alone = [answer(model(), new_decode_cache(model(), context(model(), recipe)), q) for q in questions]
    assert together == alone


def test_rewinding_half_way(model) -> None:
    tail = new_decode_cache(model(), context(model(), "knorm(budget=24)"))
    a, b = tiny.document(6, seed=1), tiny.document(6, seed=2)
    model().forward(torch.tensor(a), tail, logits=False)
    tail.extend(6)
    first = answer(model(), tail, b)
    tail.rewind(6)
    assert answer(model(), tail, b) == first
    with pytest.raises(ValueError, match="rewind"):
        tail.rewind(1000)


def test_the_context_is_not_written_to(model) -> None:
    shared = context(model(), "keydiff(budget=24)")
    before = [(layer.k.clone(), layer.v.clone()) for layer in shared.layers]
    answer(model(), new_decode_cache(model(), shared), tiny.document(8))
    for (k, v), layer in zip(before, shared.layers, strict=True):
        assert torch.equal(k, layer.k)
        assert torch.equal(v, layer.v)


def test_bytes_are_those_of_the_kept_units(model) -> None:
    shared, spec = context(model(), "knorm(budget=24)"), model().spec
    assert shared.kept == 24
    assert shared.nbytes == spec.layers * spec.kv_heads * 24 * spec.unit_bytes
