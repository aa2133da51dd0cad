"""Generate an answer after a frozen context, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.decode_step import AsyncTokenCopy, make_decode_step
from kvcli.engine.detokenizer import Detokenizer
from kvcli.engine.repetition import RepetitionDetector
from kvcli.engine.sampling import Sampling, sample
from kvcli.errors import InputError
from kvcli.events import Answer, Token
from kvcli.models.model import Model
from kvcli.types import CHUNK


def new_decode_cache(model: Model, context: Context | None) -> DecodeCache:
    """An empty tail behind a context, or behind nothing."""
    return DecodeCache(model.spec, model.rotary, context, dtype=model.dtype, device=model.device)


def generate(
    model: Model,
    tail: DecodeCache,
    ids: Sequence[int],
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 2048,
    stop: Sequence[str] = (),
    chunk: int = CHUNK,
    allow_repetition: bool = True,
    ahead: bool | None = None,
) -> Iterator[Token | Answer]:
    """Put a question's ids behind a tail and generate the answer.

    The tail keeps question and answer; ``tail.rewind`` forgets them. Closing the generator early leaves the tail
    with what was generated so far.

    Args:
        model: a loaded model.
        tail: from :func:`new_decode_cache`.
        ids: the question and the template's turn to answer.
        sampling: greedy by default.
        max_tokens: longest answer.
        stop: texts that end the answer and are not part of it.
        chunk: tokens per forward pass of a long question.
        allow_repetition: let a greedy answer repeat itself until ``max_tokens`` instead of ending it
            (:class:`kvcli.engine.repetition.RepetitionDetector`).
        ahead: begin a token's step before its number is read, so that a card never waits for the host; by default
            where there is a card. Answers are the same.

    Yields:
        a :class:`Token` for each token of the answer, then one :class:`Answer`.

    Raises:
        InputError: no ids.
    """
    if not ids:
        raise InputError("the question has no tokens")
    model.check_ids(ids)
    how = sampling or Sampling()
    generator = how.generator(model.device)
    ahead = model.device.type == "cuda" if ahead is None else ahead
    began = perf_counter()
    with torch.inference_mode(), model.lock:
        tail.reserve(tail.length + len(ids) + min(max_tokens, model.spec.max_positions))
    logits: Tensor | None = None
    question = torch.tensor(ids, device=model.device, dtype=torch.long)
    for part in torch.split(question, chunk):
        logits = _advance(model, tail, part)
    writer, arrival = Detokenizer(model.tokenizer, stop), AsyncTokenCopy(model.device)
    step = make_decode_step(model, tail)
    first = began
    count, reason = 0, "length"
    watch = None if allow_repetition or how.temperature else RepetitionDetector()
    stopped_repeating = False
    while count < max_tokens:
        assert logits is not None
        token = sample(logits, how, generator)
        arrival.send(token)
        count += 1
        following = step(token) if ahead and count < max_tokens else None
        number = arrival.number()
        if count == 1:
            first = perf_counter()
        if number in model.eos:
            reason = "stop"
            break
        piece = writer.push(number)
        if writer.stopped:
            yield Token(number, piece)
            reason = "stop"
            break
        yield Token(number, piece)
        if watch is not None and watch.push(number):
            stopped_repeating = True
            break
        if count < max_tokens:
            logits = step(token) if following is None else following
            tail.extend(1)
    last = writer.flush()
    if last:
        yield Token(-1, last)
    yield Answer(writer.text, reason, len(ids), count, first - began, perf_counter() - first, stopped_repeating)


def append_tokens(model: Model, tail: DecodeCache, ids: Sequence[int], *, chunk: int = CHUNK) -> None:
    """Put ids behind a tail and ask nothing; arguments as for :func:`generate`."""
    for part in torch.split(torch.tensor(ids, device=model.device, dtype=torch.long), chunk):
        model.forward(part, tail, logits=False)
        tail.extend(len(part))


def _advance(model: Model, tail: DecodeCache, ids: Tensor) -> Tensor:
    logits = model.forward(ids, tail, logits=True)
    tail.extend(len(ids))
    assert logits is not None
    return logits
