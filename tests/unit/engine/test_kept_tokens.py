"""Kept tokens of a conversation say how much is read, and change no answer."""

from __future__ import annotations

import random

import pytest

from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.kept_tokens import KeptTokens
from kvcli.engine.prefill import prefill
from kvcli.events import Answer
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import drain
from tests.laws.test_generate import Bytes

LONGEST = 6


@pytest.fixture(scope="module")
def speaker():
    model = tiny.load("llama")
    model.tokenizer, model.eos = Bytes(), frozenset()
    return model


def context(model, recipe: str):
    return drain(prefill(model, tiny.document(40), parse(recipe), chunk=16, horizon=120))


def answer(model, cache, ids: list[int]) -> list[int]:
    """The ids of a greedy answer to what a cache does not have of the question."""
    events = generate(model, cache, ids[cache.length :], max_tokens=LONGEST)
    return [event.id for event in events if not isinstance(event, Answer) and event.id >= 0]


def common(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("recipe", ["full", "knorm(budget=24)+int8"])
def test_any_questions_one_after_the_other(speaker, recipe: str) -> None:
    model, held, kept, dice = speaker, context(speaker, recipe), KeptTokens(), random.Random(7)
    before: list[int] = []
    for turn in range(8):
        new = tiny.document(dice.randrange(1, 9), seed=turn)
        ids = [*before[: dice.randrange(len(before) + 1)], *new] if turn % 4 else [*before, *new]
        shared = min(common(kept.ids, ids), len(ids) - 1)
        assert kept.shared(held, ids) == shared
        cache = kept.begin(model, held, ids)
        assert (cache.length, kept.reused, kept.nbytes) == (shared, shared, 0)
        said = answer(model, cache, ids)
        assert said == answer(model, new_decode_cache(model, held), ids)
        kept.end(cache, [*ids, *said])
        assert kept.ids == [*ids, *said][: cache.length]
        assert len(kept.ids) >= len(ids) + LONGEST - 1
        assert all(layer.k.shape[1] == cache.length for layer in cache.layers)
        before = kept.ids


def test_the_last_token_of_a_question_is_read_again(speaker) -> None:
    kept, ids = KeptTokens(), tiny.document(9)
    cache = kept.begin(speaker, None, ids)
    kept.end(cache, [*ids, *answer(speaker, cache, ids)])
    assert kept.begin(speaker, None, ids).length == len(ids) - 1


def test_nothing_is_used_again_after_another_context_or_where_units_are_selected(speaker) -> None:
    ids, selecting = tiny.document(9), context(speaker, "full+quest(page=4, pages=3, dense=0)")
    for first, second in ((None, context(speaker, "full")), (selecting, selecting)):
        kept = KeptTokens()
        cache = kept.begin(speaker, first, ids)
        kept.end(cache, [*ids, *answer(speaker, cache, ids)])
        assert kept.begin(speaker, second, [*ids, 5]).length == 0
        assert kept.reused == 0


def test_an_answer_that_is_given_up_keeps_what_was_read(speaker) -> None:
    kept, ids = KeptTokens(), tiny.document(9)
    cache = kept.begin(speaker, None, ids)
    events = generate(speaker, cache, ids, max_tokens=LONGEST)
    first = next(events)
    events.close()  # type: ignore[attr-defined]
    kept.end(cache, [*ids, first.id])  # type: ignore[union-attr]
    assert kept.ids == ids
    assert kept.begin(speaker, None, [*ids, first.id, 3]).length == len(ids)  # type: ignore[union-attr]
