"""The engine: read a document into a bounded cache, freeze it, ask.

Generators of events; the generator's return value is the result. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from time import perf_counter

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from kvcli.cache.context import Context, freeze
from kvcli.cache.decode_cache import Tail
from kvcli.cache.prefill_cache import Fill, Step
from kvcli.engine.decode_step import Arrival, chosen
from kvcli.engine.sampling import Circles, Sampling, sample
from kvcli.errors import InputError, ModelError
from kvcli.events import Answer, Prefill, Token
from kvcli.models.load import Model
from kvcli.recipe import Recipe
from kvcli.types import CHUNK


def fill(
    model: Model,
    ids: Sequence[int],
    recipe: Recipe,
    *,
    chunk: int = CHUNK,
    probe: Sequence[int] | None = None,
    horizon: int | None = None,
    resume: Fill | None = None,
) -> Generator[Prefill, None, Fill]:
    """Read token ids into a working set under a recipe's budget.

    Args:
        model: a loaded model.
        ids: the document, template head included.
        recipe: which units survive.
        chunk: tokens per forward pass.
        probe: the question's ids for policies that read for one question; ignored by the others.
        horizon: RoPE positions that this run and its answers will use, where frequencies depend on the length
            (longrope, dynamic NTK); by default the length of the document or, if less, of what is kept of it.
        resume: a fill of the same recipe and chunk size that has read the first ``resume.seen`` of these ids and was
            interrupted; it reads on from there, and the result is that of an uninterrupted reading.

    Yields:
        a :class:`Prefill` after each chunk.

    Returns:
        the fill, ready to be frozen.

    Raises:
        InputError: no tokens.
    """
    if not ids:
        raise InputError("the document has no tokens")
    keep = recipe.keep
    question = torch.tensor((probe or []) if keep.question else [], device=model.device, dtype=torch.long)
    extra = len(question)
    tokens = torch.tensor(ids, device=model.device, dtype=torch.long)
    work = start(model, recipe, len(ids), chunk=chunk, probe=extra) if resume is None else resume
    model.rotary.pin(horizon or _positions(recipe, len(ids), chunk + extra))
    began = perf_counter()
    for step in _steps(len(ids), chunk, keep.tail, extra):
        if step.start < work.seen:
            continue
        batch = tokens[step.start : step.start + step.new]
        if step.probe:
            batch = torch.cat([batch, question])
        work.step = step
        model.forward(batch, work, logits=False)
        work.seen += step.new
        yield Prefill(work.seen, len(ids), work.kept, perf_counter() - began)
    return work


def start(model: Model, recipe: Recipe, tokens: int, *, chunk: int = CHUNK, probe: int = 0) -> Fill:
    """An empty working set for a document of ``tokens``, and for questions of ``probe`` tokens behind each chunk.

    Raises:
        ModelError: the policy scores with retaining heads and the model has none, or its hold needs a calibration.
    """
    if recipe.keep.trained and model.heads is None:
        raise ModelError(
            f"'{recipe.keep.name}' needs retaining heads and there are none for {model.name}",
            f"kvcli train -m {model.name} -o heads.safetensors FILE…, or --policy keydiff, which needs none",
        )
    if recipe.hold.calibrated == "must" and not model.calibration:
        raise ModelError(
            f"'{recipe}' needs a calibration and there is none of {model.name}",
            f"kvcli calibrate -m {model.name} FILE…, or another skew",
        )
    return Fill(
        model.spec,
        recipe.keep,
        model.rotary,
        tokens=tokens,
        chunk=min(chunk, tokens) + probe,
        dtype=model.dtype,
        device=model.device,
        heads=model.heads if recipe.keep.trained else None,
        hold=recipe.hold,
        calibration=model.calibration if recipe.hold.calibrated != "never" else None,
    )


def read(
    model: Model,
    ids: Sequence[int],
    recipe: Recipe,
    *,
    chunk: int = CHUNK,
    probe: Sequence[int] | None = None,
    horizon: int | None = None,
) -> Generator[Prefill, None, Context]:
    """Fill and freeze; arguments as for :func:`fill`."""
    work = yield from fill(model, ids, recipe, chunk=chunk, probe=probe, horizon=horizon)
    with torch.inference_mode():
        return freeze(work, recipe.hold)


def begin(model: Model, context: Context | None) -> Tail:
    """An empty tail behind a context, or behind nothing."""
    return Tail(model.spec, model.rotary, context, dtype=model.dtype, device=model.device)


def absorb(
    model: Model, work: Fill, ids: Sequence[int], recipe: Recipe, *, chunk: int = CHUNK
) -> Generator[Prefill, None, Context]:
    """Evict what stands behind a document into it: a conversation goes on for ever at fixed memory.

    The fill is kept beside the context that was frozen from it (``freeze(…, release=False)``), and the ids of the tail
    are read on in it as the document's next chunks; the old context and tail are then to be dropped. Nothing is said to
    be the last chunk, so stabilizers protect the newest turns. Reading the ids again costs a prefill of the tail, and
    the fill beside the context a second time the kept units. For that the turns are scored by the policy's own
    measure, which needs their queries, at the places that they have behind what was kept of the document, and
    absorbing is the same as having read one longer document.

    Args:
        model: a loaded model, its RoPE pinned as for the reading.
        work: the fill that the context was frozen from; or an empty one, for a conversation without a document. It
            must not be used again where the generator is closed early: a layer may have read more than another.
        ids: what the tail holds.
        recipe: that of the fill.
        chunk: tokens per forward pass.

    Yields:
        a :class:`Prefill` after each chunk, counting ``ids``.

    Returns:
        the context of everything up to the end of ``ids``.

    Raises:
        InputError: no ids.
    """
    if not ids:
        raise InputError("there is nothing to absorb")
    began, before = perf_counter(), work.seen
    with torch.inference_mode():
        work.reserve(before + len(ids), min(chunk, len(ids)))
    for part in torch.split(torch.tensor(ids, device=model.device, dtype=torch.long), chunk):
        work.step = Step(work.seen, len(part))
        model.forward(part, work, logits=False)
        work.seen += len(part)
        yield Prefill(work.seen - before, len(ids), work.kept, perf_counter() - began)
    return settle(work, recipe)


def settle(work: Fill, recipe: Recipe) -> Context:
    """The context of a fill that is kept, to be read on in by :func:`absorb`."""
    with torch.inference_mode():
        context = freeze(work, recipe.hold, release=False)
        work.release()
    return context


def ask(
    model: Model,
    tail: Tail,
    ids: Sequence[int],
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 2048,
    stop: Sequence[str] = (),
    chunk: int = CHUNK,
    circles: bool = True,
    ahead: bool | None = None,
) -> Iterator[Token | Answer]:
    """Put a question's ids behind a tail and generate the answer.

    The tail keeps question and answer; ``tail.rewind`` forgets them. Closing the generator early leaves the tail
    with what was generated so far.

    Args:
        model: a loaded model.
        tail: from :func:`begin`.
        ids: the question and the template's turn to answer.
        sampling: greedy by default.
        max_tokens: longest answer.
        stop: texts that end the answer and are not part of it.
        chunk: tokens per forward pass of a long question.
        circles: whether a greedy answer may go in circles until ``max_tokens``, or is ended as soon as it does
            (:class:`kvcli.engine.sampling.Circles`).
        ahead: begin a token's step before its number is read, so that a card never waits for the host; by default
            where there is a card. Answers are the same.

    Yields:
        a :class:`Token` for each token of the answer, then one :class:`Answer`.

    Raises:
        InputError: no ids.
    """
    if not ids:
        raise InputError("the question has no tokens")
    how = sampling or Sampling()
    generator = how.generator(model.device)
    ahead = model.device.type == "cuda" if ahead is None else ahead
    began = perf_counter()
    with torch.inference_mode():
        tail.reserve(tail.length + len(ids) + min(max_tokens, model.spec.max_positions))
    logits: Tensor | None = None
    question = torch.tensor(ids, device=model.device, dtype=torch.long)
    for part in torch.split(question, chunk):
        logits = _advance(model, tail, part)
    writer, arrival = _Writer(model.tokenizer, stop), Arrival(model.device)
    step = chosen(model, tail)
    first = began
    count, reason = 0, "length"
    watch = None if circles or how.temperature else Circles()
    circled = False
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
            circled = True
            break
        if count < max_tokens:
            logits = step(token) if following is None else following
            tail.extend(1)
    last = writer.flush()
    if last:
        yield Token(-1, last)
    yield Answer(writer.text, reason, len(ids), count, first - began, perf_counter() - first, circled)


def put(model: Model, tail: Tail, ids: Sequence[int], *, chunk: int = CHUNK) -> None:
    """Put ids behind a tail and ask nothing; arguments as for :func:`ask`."""
    for part in torch.split(torch.tensor(ids, device=model.device, dtype=torch.long), chunk):
        model.forward(part, tail, logits=False)
        tail.extend(len(part))


def _advance(model: Model, tail: Tail, ids: Tensor) -> Tensor:
    logits = model.forward(ids, tail, logits=True)
    tail.extend(len(ids))
    assert logits is not None
    return logits


def edge(tokens: int, chunk: int, tail: int) -> int:
    """Tokens read before the last step of a document's body, whose eviction knows that nothing follows.

    Up to there two documents that begin alike are read alike, however long they are.
    """
    body = max(0, tokens - tail)
    return max(0, body - 1) // chunk * chunk


def _steps(tokens: int, chunk: int, tail: int, probe: int) -> Iterator[Step]:
    """The chunks of a document: its body with eviction, then its protected tail without."""
    body = max(0, tokens - tail)
    for start in range(0, body, chunk):
        new = min(chunk, body - start)
        yield Step(start, new, probe, last=start + new == body)
    for start in range(body, tokens, chunk):
        yield Step(start, min(chunk, tokens - start), probe, last=True, evict=False)


def _positions(recipe: Recipe, tokens: int, chunk: int) -> int:
    keep = recipe.keep
    budget = recipe.units(0, 1)
    if budget is None or keep.positions == "original":
        return tokens
    return min(tokens, round(budget * (1 + keep.pyramid)) + keep.tail + chunk)


class _Writer:
    """Turns ids into text piece by piece, holding back what may be the beginning of a stop text."""

    def __init__(self, tokenizer: object, stop: Sequence[str]) -> None:
        self._backend = tokenizer._tokenizer  # type: ignore[attr-defined]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        self._held += self._stream.step(self._backend, token) or ""
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self._held, self.stopped = self._held[: min(found)], True
            return self.flush()
        keep = max((n for s in self._stop for n in range(len(s)) if n and self._held.endswith(s[:n])), default=0)
        return self._release(len(self._held) - keep)

    def flush(self) -> str:
        """Whatever was held back."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        piece, self._held = self._held[:count], self._held[count:]
        self.text += piece
        return piece
