"""Answers that step together are the answers that they are alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from kvcli.cache.context import Context
from kvcli.engine import batched_step, recorded_step
from kvcli.engine.batched_step import Paused, step_together
from kvcli.engine.drafts import as_ids
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.sampling import Sampling
from kvcli.events import Answer, Token
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import drain
from tests.laws.test_generate import Bytes

CASES = [
    ("llama", "full"),
    ("llama", "knorm(budget=24)+turbo(bits=4)"),
    ("mistral-window", "full"),
    ("phi3-longrope", "full+int8"),
    ("llama", "full+kvsharer(map=0_0_1)"),
]
SETTINGS = [
    {},
    {"sampling": Sampling(1.0, seed=3)},
    {"sampling": Sampling(0.7, top_k=20, top_p=0.9, seed=4)},
    {"sampling": Sampling(repeat_penalty=1.3)},
    {"drafts": as_ids([])},
    {"allow_repetition": False},
]


def speaker(family: str):
    model = tiny.load(family)
    model.tokenizer, model.eos = Bytes(), frozenset()
    return model


def contexts(model, recipe: str) -> list[Context | None]:
    documents = [tiny.document(60), tiny.document(44, seed=8)]
    return [drain(prefill(model, ids, parse(recipe), chunk=16, horizon=200)) for ids in documents] + [None]


def answers(model, held: list[Context | None], *, together: bool, longest: int = 32) -> list[Iterator[Token | Answer]]:
    """Answers that differ in all that an answer may have of its own; the first two share a context."""
    started = []
    for n, options in enumerate(SETTINGS):
        prompt = tiny.document(5 + 3 * n, seed=n)
        cache = new_decode_cache(model, held[max(0, n - 1) % len(held)])
        length = {"max_tokens": 28 - 4 * n if n else longest}
        started.append(generate(model, cache, prompt, together=together, **length, **options))  # type: ignore[arg-type]
    return started


def run_together(started: list[Iterator[Token | Answer]], delays: list[int]) -> tuple[list[list[object]], int]:
    """What each answer yields, if it begins after some turns; and how many steps were computed with others."""
    said: list[list[object]] = [[] for _ in started]
    live, shared, turn = dict(enumerate(started)), 0, 0
    while live:
        waiting = []
        for n in [n for n in live if delays[n] <= turn]:
            event = next(live[n], None)
            if event is None:
                del live[n]
            elif isinstance(event, Paused):
                waiting.append(event.step)
            else:
                said[n].append(
                    (event.id, event.text) if isinstance(event, Token) else (event.text, event.finish_reason)
                )
        step_together(waiting)
        shared += sum(step.logits is not None for step in waiting)
        turn += 1
    return said, shared


def alone(started: list[Iterator[Token | Answer]]) -> list[list[object]]:
    return [run_together([one], [0])[0][0] for one in started]


@pytest.fixture(autouse=True)
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording is a law of its own, and takes most of the time. Two answers are enough to step together."""
    monkeypatch.setattr(recorded_step, "_PLAIN", 99)
    monkeypatch.setattr(batched_step, "_LAYER", 0)


@pytest.mark.parametrize(("family", "recipe"), CASES)
def test_answers_that_come_and_go_are_those_of_plain_decoding(family: str, recipe: str) -> None:
    model = speaker(family)
    held, longest = contexts(model, recipe), 64 if recipe == "full" and family == "llama" else 24
    expected = alone(answers(model, held, together=False, longest=longest))
    delays = [random.Random(n).randrange(8) for n in range(len(SETTINGS))]
    found, shared = run_together(answers(model, held, together=True, longest=longest), delays)
    assert found == expected
    assert shared > len(SETTINGS) * 8


def test_storages_that_are_opened_for_one_answer_step_alone() -> None:
    model = speaker("llama")
    held = contexts(model, "full+quest(page=4, pages=3, dense=0)")
    assert [batched_step.fewest_answers(model, new_decode_cache(model, one)) for one in held] == [None, None, 2]


def test_few_answers_of_a_small_model_step_alone_if_their_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_step, "_LAYER", 1 << 20)
    for family, fewest in (("llama", 4), ("mistral-window", 2)):  # sliding windows are not recorded
        model = speaker(family)
        monkeypatch.setattr(type(model), "read_bytes", property(lambda _, m=model: m.spec.layers << 19))
        cache = new_decode_cache(model, contexts(model, "full")[0])
        assert batched_step.fewest_answers(model, cache) == fewest
        steps = [batched_step.Step(model, cache, torch.tensor([5]), fewest) for _ in range(4)]
        step_together(steps[: fewest - 1])
        assert all(step.logits is None for step in steps)
        step_together(steps[:fewest])
        assert all(step.logits is not None for step in steps[:fewest])


def test_more_answers_than_a_pass_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_step, "MOST", 3)
    model = speaker("llama")
    held = contexts(model, "full")
    found, shared = run_together(answers(model, held, together=True), [0] * len(SETTINGS))
    assert found == alone(answers(model, held, together=False))
    assert shared


def test_a_stop_string_ends_one_answer_of_a_batch() -> None:
    model = speaker("llama")
    cache, ids = (lambda: new_decode_cache(model, None)), tiny.document(9)
    *_, whole = generate(model, cache(), ids, max_tokens=30)
    assert isinstance(whole, Answer)
    stop = [whole.text[9:12]]

    def pair(together: bool) -> list[Iterator[Token | Answer]]:
        options = {"max_tokens": 30, "together": together}
        return [generate(model, cache(), ids, stop=s, **options) for s in (stop, [])]  # type: ignore[arg-type]

    found, shared = run_together(pair(True), [0, 0])
    assert found == alone(pair(False))
    assert len(found[0]) < len(found[1])
    assert shared


def test_an_answer_that_is_closed_while_it_waits_keeps_its_tokens_and_no_more() -> None:
    model = speaker("llama")
    caches = [new_decode_cache(model, None) for _ in range(2)]
    started = [generate(model, cache, tiny.document(9), max_tokens=30, together=True) for cache in caches]
    steps = []
    for one in started:
        assert isinstance(next(one), Token)
        paused = next(one)
        assert isinstance(paused, Paused)
        steps.append(paused.step)
    step_together(steps)
    started[0].close()  # type: ignore[attr-defined]
    assert caches[0].length == 9
    assert isinstance(next(started[1]), Token)
    assert caches[1].length == 10
    caches[0].rewind(9)
    again, first = (
        model.forward(steps[0].token, cache, logits=True) for cache in (caches[0], new_decode_cache(model, None))
    )
    assert not torch.equal(again, first)  # the question is still there
    torch.testing.assert_close(again, steps[0].logits)
