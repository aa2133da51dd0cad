"""Correctness check before a benchmark: the timed calls on a short text, against the model's own attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.errors import ModelError
from kvcli.events import Token, drain
from kvcli.models.cpu_linear import exact_weights
from kvcli.models.model import Model
from kvcli.models.self_test import TOLERANCE, precision
from kvcli.prompt_cache.prefill import cached_prefill
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.recipe import Recipe, parse

TOKENS, QUESTION, ANSWER, CHUNK = 96, 16, 12, 40

STORED = 0.7
"""Maximum change of logits by a correct storage (relative RMS); unrelated logits differ by 1.4."""

NARROW = 0.15
"""Maximum change of logits by the weights of few bits that decoding may take, with inputs of 8 bits."""


@dataclass(frozen=True)
class Check:
    """Relative RMS of logits, and the distance of the chosen tokens below the best one, in RMS of the logits.

    Attributes:
        prefill: a question after a prefill without evictions, against one full forward.
        decode: the answer's tokens against one full forward over them: 0 if each is the best one.
        hold: the recipe's storage against dense storage of the same units; 0 for dense.
        weights: the weights that few tokens are multiplied by (:mod:`kvcli.models.cpu_linear`) against the model's own;
            0 if they are the same. The other three are of the model's own.
    """

    prefill: float
    decode: float
    hold: float
    weights: float = 0.0


def check(model: Model, recipe: Recipe) -> Check:
    """Compare prefill, decode and storage with the model's own attention.

    Raises:
        ModelError: a difference is too large; states it.
    """
    document, question = (draw(model, n, seed) for n, seed in ((TOKENS, 1), (QUESTION, 2)))
    dense = Recipe(everything(recipe, TOKENS, model.spec.layers).policy, parse("full").storage)
    with exact_weights(model.module):
        context = _read(model, document, dense, question)
        got = _question(model, context, question)
        answer = [
            event.id
            for event in generate(model, new_decode_cache(model, context), question, max_tokens=ANSWER)
            if isinstance(event, Token) and event.id >= 0
        ]
        stored = 0.0 if recipe.storage == dense.storage else _stored(model, recipe, dense, document, question, got)
    expected = _full(model, document + question + answer)
    said = expected[-len(answer) - 1 : -1]
    below = said.max(-1).values - said.gather(1, torch.tensor(answer, device=said.device)[:, None])[:, 0]
    found = Check(
        prefill=_apart(got, expected[TOKENS : TOKENS + QUESTION]),
        decode=float((below / said.square().mean(-1).sqrt()).max()),
        hold=stored,
        weights=_apart(_question(model, context, question), got),
    )
    limit = TOLERANCE[precision(model)]
    for name, value, most in (
        ("prefill", found.prefill, limit),
        ("decode", found.decode, 8 * limit),
        ("storage", found.hold, STORED),
        ("weights", found.weights, NARROW),
    ):
        if not value <= most:
            raise ModelError(
                f"'{recipe}' with {model.name} fails the correctness check, so it is not timed: {name}"
                f" differs by {value:.1e}, and at most {most:.1e} is accepted for {model.spec.dtype}",
                "--dtype float32",
            )
    return found


def everything(recipe: Recipe, tokens: int, layers: int) -> Recipe:
    """Return the recipe with a budget that gives every layer at least ``tokens``."""
    if recipe.policy.budget is None:
        return recipe
    budget = max(tokens, recipe.policy.budget)  # no less than its sinks and stabilizers
    while min(recipe.with_budget(budget).policy.units(i, layers) or 0 for i in range(layers)) < tokens:
        budget *= 2
    return recipe.with_budget(budget)


def draw(model: Model, count: int, seed: int) -> list[int]:
    """Draw random ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.spec.vocab, (count,), generator=generator).tolist()


def _read(model: Model, ids: list[int], recipe: Recipe, question: list[int]) -> Context:
    job = PrefillRequest(ids, recipe, CHUNK, horizon=TOKENS + QUESTION + ANSWER, probe=question)
    context = drain(cached_prefill(model, job)).context
    assert context is not None
    return context


def _question(model: Model, context: Context, question: list[int]) -> Tensor:
    ids = torch.tensor(question, device=model.device)
    logits = model.forward(ids, new_decode_cache(model, context), logits="all")
    assert logits is not None
    return logits.float()


@torch.inference_mode()
def _full(model: Model, ids: list[int]) -> Tensor:
    with model.reference() as module:
        logits: Tensor = module(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits.float()


def _stored(
    model: Model, recipe: Recipe, dense: Recipe, document: list[int], question: list[int], expected: Tensor
) -> float:
    stored = _read(model, document, replace(dense, storage=recipe.storage), question)
    return _apart(_question(model, stored, question), expected)


def _apart(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
