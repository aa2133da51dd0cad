"""Drafts change how many forward passes an answer takes, and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from kvcli.cache.context import Context
from kvcli.engine.drafts import PromptLookup, as_ids
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.sampling import Sampling
from kvcli.events import Answer, Token
from kvcli.models.load import wrap
from kvcli.recipe import parse
from kvcli.types import DRAFT
from tests import tiny
from tests.laws.helpers import drain
from tests.laws.test_generate import Bytes

FAMILIES = ["llama", "qwen3", "mistral-window", "gemma3", "phi3-longrope", "smollm3"]
RECIPES = [
    "full",
    "knorm(budget=24)",
    "full+int8",
    "keydiff(budget=24)+kivi(bits=4, group=8)",
    "full+turbo(bits=4)",
    "full+quest(page=4, pages=3, dense=0)",
]
PROMPT = tiny.document(12)


@pytest.fixture(scope="module")
def speaker():
    def load(family: str):
        model = tiny.load(family)
        model.tokenizer, model.eos = Bytes(), frozenset()
        return model

    return {family: load(family) for family in FAMILIES}


def context(model, recipe: str) -> Context:
    return drain(prefill(model, tiny.document(60), parse(recipe), chunk=16, horizon=200))


def run(model, held: Context | None, drafts: list[int] | None, **options: object) -> tuple[list[int], Answer, int]:
    tail = new_decode_cache(model, held)
    found = None if drafts is None else as_ids(drafts)
    *tokens, answer = generate(model, tail, PROMPT, drafts=found, **{"max_tokens": 40, **options})
    assert isinstance(answer, Answer)
    return [t.id for t in tokens if isinstance(t, Token) and t.id >= 0], answer, tail.length


def texts(said: list[int]) -> list[list[int]]:
    """A text that says the same, one that errs at every seventh token, and one that says something else."""
    wrong = [(token + 1) % 97 if i % 7 == 5 else token for i, token in enumerate(said)]
    return [[*PROMPT, *said, 5], [*PROMPT, *wrong, *said[20:], 5], tiny.document(50, seed=9)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_greedy_answer_is_that_of_plain_decoding(speaker, recipe: str) -> None:
    model = speaker["llama"]
    held = context(model, recipe)
    said, plain, length = run(model, held, None)
    assert plain.steps == len(said) - 1
    passes = []
    for text in texts(said):
        ids, answer, held_tokens = run(model, held, text)
        assert (ids, answer.text, answer.finish_reason, held_tokens) == (said, plain.text, plain.finish_reason, length)
        passes.append(answer.steps)
    if "quest" in recipe:  # selects units once for all rows
        assert passes == [plain.steps] * 3
    else:
        assert passes[0] <= 2 + plain.steps // DRAFT + 2
        assert passes[0] < passes[1] < plain.steps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=2.0, top_k=20, seed=3)])
def test_every_family_greedy_and_sampled(speaker, family: str, settings: Sampling) -> None:
    """The same seed draws the same tokens: each token takes the same random numbers, whatever the draft was."""
    model = speaker[family]
    held = context(model, "knorm(budget=24)")
    said, plain, _ = run(model, held, None, sampling=settings)
    for text in texts(said):
        ids, answer, _ = run(model, held, text, sampling=settings)
        assert (ids, answer.text) == (said, plain.text)


def test_samples_keep_their_distribution(speaker) -> None:
    model, settings = speaker["llama"], {"temperature": 8.0, "top_k": 4}
    logits = model.forward(torch.tensor(PROMPT), new_decode_cache(model, None), logits=True)
    first = int(logits.argmax())
    logits = model.forward(torch.tensor([*PROMPT, first]), new_decode_cache(model, None), logits=True)
    best = logits.topk(4)
    chances, draft = torch.softmax(best.values / 8.0, 0), int(best.indices[0])
    counts = dict.fromkeys(best.indices.tolist(), 0)
    for seed in range(300):
        ids, _, _ = run(model, None, [*PROMPT, first, draft, 7], sampling=Sampling(**settings, seed=seed), max_tokens=2)
        if ids[0] == first:
            counts[ids[1]] += 1
    drawn = sum(counts.values())
    assert drawn > 60
    for chance, count in zip(chances.tolist(), counts.values(), strict=True):
        assert abs(count / drawn - chance) < 4 * (chance * (1 - chance) / drawn) ** 0.5


def test_stop_texts_ends_and_limits_are_those_of_plain_decoding(speaker) -> None:
    model = speaker["llama"]
    said, plain, _ = run(model, None, None)
    text = texts(said)[0]
    for options in ({"stop": [plain.text[6:9]]}, *({"max_tokens": n} for n in range(1, 30, 4))):
        ids, answer, length = run(model, None, text, **options)
        want, expected, held = run(model, None, None, **options)
        assert (ids, answer.text, answer.finish_reason, length) == (want, expected.text, expected.finish_reason, held)
    model.eos = frozenset({said[17]})
    try:
        ids, answer, _ = run(model, None, text)
        want, expected, _ = run(model, None, None)
    finally:
        model.eos = frozenset()
    assert (ids, answer.finish_reason) == (want, expected.finish_reason) == (said[: said.index(said[17])], "stop")


def test_an_answer_that_repeats_itself_ends_at_the_same_token() -> None:
    """The prompt is looked up too, so a cycle is drafted from the answer itself."""
    module = tiny.build("llama")
    for name, weight in module.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            torch.nn.init.zeros_(weight)
    model = wrap(module, Bytes(), name="cycle", fingerprint=None)
    want, plain, length = run(model, None, None, max_tokens=1200, allow_repetition=False)
    ids, answer, held = run(model, None, [], max_tokens=1200, allow_repetition=False)
    assert (ids, answer.stopped_repeating, held) == (want, plain.stopped_repeating, length)
    assert answer.stopped_repeating
    assert answer.steps < len(ids) / 3


def test_a_tie_is_decided_as_by_plain_decoding() -> None:
    """Each token has a twin with the same weights, so the two best logits are equal up to rounding."""
    module = tiny.build("llama", seed=3)
    head = module.get_output_embeddings().weight
    with torch.no_grad():
        head[1::2] = head[:-1:2]
    model = wrap(module, Bytes(), name="twins", fingerprint=None)
    model.eos = frozenset()
    said, _, _ = run(model, None, None)
    for text in texts(said):
        ids, answer, _ = run(model, None, text)
        assert ids == said
        assert answer.steps >= len(said) - 1


def test_an_answer_that_is_not_read_to_its_end_leaves_a_usable_cache(speaker) -> None:
    model = speaker["llama"]
    said, _, _ = run(model, None, None)
    tail = new_decode_cache(model, None)
    events = generate(model, tail, PROMPT, max_tokens=40, drafts=as_ids(texts(said)[0]))
    for _ in range(6):
        next(events)
    events.close()
    assert tail.length == len(PROMPT) + 5
    tail.rewind()
    again = [e.id for e in generate(model, tail, PROMPT, max_tokens=40) if isinstance(e, Token)]
    assert [i for i in again if i >= 0] == said


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drafted_followed_the_longest_end_of_what_was_said(seed: int) -> None:
    draw = random.Random(seed)
    words = draw.choice([2, 4, 30])
    document = [draw.randrange(words) for _ in range(draw.randrange(0, 80))]
    prompt = [draw.randrange(words) for _ in range(draw.randrange(1, 30))]
    said = [draw.randrange(words) for _ in range(10)]
    lookup = PromptLookup(np.asarray(document, np.int32), prompt, len(prompt) + 10)
    for token in said:
        lookup.push(token)
    have = prompt + said

    def agree(text: list[int], end: int) -> int:
        return next(
            (n for n in range(min(end, 16)) if text[end - 1 - n] != have[len(have) - 1 - n : len(have) - n][0]),
            min(end, 16),
        )

    ends = [(agree(text, e), text[e : e + 6]) for text in (document, have) for e in range(1, len(text))]
    longest = max((n for n, _ in ends), default=0)
    draft = lookup.draft(6)
    if longest < 4:
        assert draft == []
    else:
        assert draft in [follow for n, follow in ends if n == longest]
    assert lookup.draft(0) == []


def test_bad_drafts_make_it_ask_for_more() -> None:
    text = as_ids([1, 2, 3, 4, 5, 6, 7, 8])
    lookup = PromptLookup(text, [9, 2, 3, 4, 5], 100)
    assert lookup.draft(2) == [6, 7]
    for _ in range(5):
        lookup.report(0)
    assert lookup.draft(2) == []
    for _ in range(5):
        lookup.report(8)
    assert lookup.draft(2) == [6, 7]
