"""Holds that offload, at their limit on the real default model: nothing is left out, and the answers are full's."""

from pathlib import Path

import pytest
import torch

from kvcli.cache.context import freeze
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prompt import Prompt
from kvcli.models.load import load
from kvcli.models.resolve import resolve
from kvcli.recipe import parse
from kvcli.storage.offload.layer import Offloaded
from tests.laws.helpers import answer, distance, drain, filled

pytestmark = pytest.mark.real

# Of 177 tokens: each offloads, and chooses all that it may choose from.
LIMITS = [
    "quest(page=8, pages=22, dense=0)",
    "infllm(block=8, blocks=19, sinks=4, local=16)",
    "shadowkv(rank=192, chunk=8, chunks=14, outliers=4)",
    "infinigen(alpha=inf, cap=1, dense=0, least=0)",
]


def test_with_everything_chosen_each_hold_answers_as_full_does() -> None:
    """In float32, so that what differs is the arithmetic's order: 1e-4 of the logits, and not one greedy token."""
    model = load(drain(resolve("smollm2-135m")), device="cpu", dtype="float32")
    prompt = Prompt(model.tokenizer)
    text = (Path(__file__).parents[2] / "LICENSE").read_text()[1000:1700]
    ids, question = prompt.document(text), prompt.question("What is a licensor?")
    assert len(ids) == 177  # one more than the limits above hold as they are
    work = filled(model, ids, "full+infllm(block=8)", 256, horizon=4096)
    logits, said = [], []
    for hold in ("dense", *LIMITS):
        with torch.inference_mode():
            context = freeze(work, parse(f"full+{hold}").storage, release=False)
        assert all(isinstance(layer, Offloaded) for layer in context.layers) or hold == "dense"
        tail = new_decode_cache(model, context)
        found = model.forward(torch.tensor(question), tail, logits="all")
        assert found is not None
        logits.append(found)
        said.append(answer(model, new_decode_cache(model, context), question, count=4))
    for hold, found, words in zip(LIMITS, logits[1:], said[1:], strict=True):
        assert distance(found, logits[0]) < 1e-4, hold
        assert words == said[0], hold
