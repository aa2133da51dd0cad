"""With a budget of at least the document's length nothing is lost: the logits are those of one full forward."""

import pytest
import torch

from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, asked, distance, reference

RECIPES = ["full", *WIDELY_TESTED]


def at_limit(policy: str, n: int) -> str:
    return policy if policy == "full" else f"{policy}(budget={n})"


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("policy", RECIPES)
def test_every_recipe_on_every_family(model, family: str, policy: str) -> None:
    body, question = tiny.document(70), tiny.document(9, seed=1)
    got = asked(model(family), body, question, at_limit(policy, 70), chunk=16)
    assert distance(got, reference(model(family), body + question)[-9:]) < 1e-5


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 63, 64, 65, 200])
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3"])
def test_any_chunk_size(model, family: str, positions: str, chunk: int) -> None:
    body, question = tiny.document(64), tiny.document(5, seed=1)
    got = asked(model(family), body, question, f"knorm(budget=64, positions={positions})", chunk)
    assert distance(got, reference(model(family), body + question)[-5:]) < 1e-5


@pytest.mark.parametrize("n", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("tail", [0, 1, 10, 25])
@pytest.mark.parametrize("chunk", [4, 64])
def test_short_documents(model, n: int, tail: int, chunk: int) -> None:
    """Shorter than the budget, than one chunk, than the protected tail."""
    body, question = tiny.document(n), tiny.document(4, seed=1)
    got = asked(model(), body, question, f"keydiff(budget=32, tail={tail})" if n <= 32 else "full", chunk)
    assert distance(got, reference(model(), body + question)[-4:]) < 1e-5


@pytest.mark.parametrize("n", [100, 127, 128, 140, 300])
def test_longrope_factor_is_that_of_the_final_length(model, n: int) -> None:
    """Phi-3 switches factors at 128 positions here; chunks before the switch must already use the final ones."""
    body, question = tiny.document(n), tiny.document(6, seed=1)
    got = asked(model("phi3-longrope"), body, question, "full", chunk=32)
    assert distance(got, reference(model("phi3-longrope"), body + question)[-6:]) < 1e-5


def test_a_question_without_a_document(model) -> None:
    from kvcli.engine.generate import new_decode_cache

    question = tiny.document(20)
    got = model().forward(torch.tensor(question), new_decode_cache(model(), None), logits="all")
    assert distance(got, reference(model(), question)) < 1e-5


def test_a_long_question_in_pieces(model) -> None:
    from kvcli.engine.generate import new_decode_cache

    question = tiny.document(50)
    tail = new_decode_cache(model(), None)
    for part in torch.tensor(question).split(13):
        logits = model().forward(part, tail, logits=True)
        tail.extend(len(part))
    assert distance(logits, reference(model(), question)[-1]) < 1e-5
