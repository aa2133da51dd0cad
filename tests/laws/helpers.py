"""Running the engine's parts in tests."""

from collections.abc import Generator, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill, prefill_steps
from kvcli.models.model import Model
from kvcli.models.pictures import Pictures
from kvcli.recipe import parse

T = TypeVar("T")

WIDELY_TESTED = ["h2o", "keydiff", "knorm", "locret", "random", "snapkv", "streaming"]
"""Policies whose laws are tested on many families; those of the others are in ``test_policies``."""


def drain(events: Generator[object, None, T]) -> T:
    """Run a generator of events to its end; its return value."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def filled(model: Model, ids: list[int], recipe: str, chunk: int, **options: object) -> PrefillCache:
    return drain(prefill_steps(model, ids, parse(recipe), chunk=chunk, **options))  # type: ignore[arg-type]


def asked(
    model: Model, body: list[int], question: list[int], recipe: str, chunk: int, pictures: Pictures | None = None
) -> Tensor:
    """Logits ``[question, vocab]`` of a question behind a read document."""
    options = {"chunk": chunk, "probe": question, "horizon": len(body) + len(question), "pictures": pictures}
    context = drain(prefill(model, body, parse(recipe), **options))  # type: ignore[arg-type]
    tail = new_decode_cache(model, context)
    logits = model.forward(torch.tensor(question), tail, logits="all")
    assert logits is not None
    return logits


@torch.inference_mode()
def reference(model: Model, ids: Iterable[int]) -> Tensor:
    """Logits ``[n, vocab]`` of one full forward with the model's own attention and RoPE."""
    with model.reference() as module:
        logits: Tensor = module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


def distance(a: Tensor, b: Tensor) -> float:
    """Relative RMS."""
    return float((a - b).norm() / b.norm())


def answer(model: Model, tail: DecodeCache, ids: list[int], count: int = 12) -> list[int]:
    """Greedy ids behind a tail, and the logits' checksum would differ with them."""
    logits = model.forward(torch.tensor(ids), tail, logits=True)
    tail.extend(len(ids))
    out = []
    for _ in range(count):
        assert logits is not None
        out.append(int(logits.argmax()))
        logits = model.forward(torch.tensor(out[-1:]), tail, logits=True)
        tail.extend(1)
    return out
