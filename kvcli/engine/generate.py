"""Generate an answer after a frozen context, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.answer_format import AnswerFormat
from kvcli.engine.batched_step import Paused, Step, fewest_answers
from kvcli.engine.decode_step import AsyncTokenCopy, make_decode_step
from kvcli.engine.drafts import DraftedStep, Ids, PromptLookup, drafts_pay, near_tie
from kvcli.engine.prompt import ANSWER_RULE, TEXT_END
from kvcli.engine.repetition import RepetitionGuard
from kvcli.engine.sampling import RepeatPenalty, Sampling, sample
from kvcli.errors import InputError
from kvcli.events import Answer, Token
from kvcli.models import query_prediction
from kvcli.models.model import Model
from kvcli.types import CHUNK


def new_decode_cache(model: Model, context: Context | None) -> DecodeCache:
    """Create an empty decode cache for a context, or for none."""
    state = model.empty_state() if context is None else None
    cache = DecodeCache(model.spec, model.rotary, context, dtype=model.dtype, device=model.device, state=state)
    if any(cache.prefetches(i) for i in range(model.spec.layers)):
        query_prediction.install(model)
    return cache


def generate(
    model: Model,
    cache: DecodeCache,
    ids: Sequence[int],
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 2048,
    stop: Sequence[str] = (),
    chunk: int = CHUNK,
    allow_repetition: bool = True,
    ahead: bool | None = None,
    drafts: Ids | None = None,
    answer_format: AnswerFormat | None = None,
    together: bool = False,
) -> Iterator[Token | Answer]:
    """Append a question to a decode cache and generate the answer.

    The cache keeps question and answer; ``cache.rewind`` removes them. If the generator is closed early, the cache
    keeps the tokens generated so far.

    Args:
        model: a loaded model.
        cache: from :func:`new_decode_cache`.
        ids: the question and the template's answer prefix.
        sampling: greedy by default.
        max_tokens: maximum length of the answer.
        stop: strings that end the answer and are not part of it.
        chunk: tokens per forward pass of a long question.
        allow_repetition: do not end a greedy answer that repeats itself, and cut nothing of it
            (:class:`kvcli.engine.repetition.RepetitionGuard`).
        ahead: queue the next step before the token id reaches the host, so that a GPU never waits; by default on a GPU.
            Answers are the same.
        drafts: ids of a text that the answer may repeat, empty for the prompt alone. Decode several drafted tokens at
            once (:mod:`kvcli.engine.drafts`) if the device and the context's storage gain from it. Answers are the
            same. ``None`` decodes token by token.
        answer_format: of the answer, which has this form if it ends with ``stop``.
        together: yield a :class:`kvcli.engine.batched_step.Paused` before each step that may be computed with those of
            other answers. Answers are the same.

    Yields:
        a :class:`Token` per token of the answer, then one :class:`Answer`.

    Raises:
        InputError: no ids, or an answer format that is too complex.
    """
    if not ids:
        raise InputError("the question has no tokens")
    model.check_ids(ids)
    constraint = None if answer_format is None else answer_format.constraint(model)
    settings = sampling or Sampling()
    generator = settings.generator(model.device)
    if model.spec.state_bytes:  # a step that is not wanted cannot be taken back
        ahead = False
    ahead = model.device.type == "cuda" if ahead is None else ahead
    started = perf_counter()
    with torch.inference_mode(), model.lock:
        cache.mark()
        end = cache.length + len(ids) + min(max_tokens, model.spec.max_positions)
        cache.reserve(end)
    logits: Tensor | None = None
    question = torch.tensor(ids, device=model.device, dtype=torch.long)
    for part in torch.split(question, chunk):
        logits = _advance(model, cache, part)
    detokenizer, token_copy = Detokenizer(model.tokenizer, stop), AsyncTokenCopy(model.device)
    penalty = RepeatPenalty(settings.repeat_penalty)

    def adjust(logits: Tensor) -> Tensor:
        logits = penalty.apply(logits)
        return logits if constraint is None else constraint.mask(logits)

    drafted: DraftedStep | None = None
    if drafts is not None and drafts_pay(model, cache):
        lookup = PromptLookup(drafts, ids, end)
        drafted = DraftedStep(model, cache, lookup, end=end, greedy=not settings.temperature, mask=adjust)
    plain = make_decode_step(model, cache) if drafted is None else drafted.plain
    step = drafted or plain
    fewest = fewest_answers(model, cache) if together and not ahead else None
    first_token_at = started
    count, reason = 0, "length"
    free = allow_repetition or settings.temperature or constraint is not None
    guard = None if free else RepetitionGuard((TEXT_END, ANSWER_RULE))
    stopped_repeating = False
    while count < max_tokens:
        assert logits is not None
        token = sample(adjust(logits), settings, generator)
        penalty.push(token)
        token_copy.send(token)
        count += 1
        next_logits = step(token) if ahead and count < max_tokens else None
        token_id = token_copy.result()
        if count == 1:
            first_token_at = perf_counter()
        if token_id in model.eos:
            reason = "stop"
            break
        piece = detokenizer.push(token_id)
        if guard is not None:
            piece = guard.push(token_id, piece)
        if detokenizer.stopped:
            yield Token(token_id, piece)
            reason = "stop"
            break
        complete = constraint is not None and constraint.push(token_id)
        yield Token(token_id, piece)
        if complete:
            reason = "stop"
            break
        if guard is not None and guard.repeats:
            stopped_repeating = True
            break
        if count < max_tokens:
            waiting = None if fewest is None else Step(model, cache, token, fewest)
            if waiting is not None and (drafted is None or not drafted.knows(token_id)):
                yield Paused(-1, "", waiting)
            if waiting is not None and waiting.logits is not None:
                next_logits = waiting.logits
                if drafted is not None:
                    drafted.skip(token_id)
                if not settings.temperature and near_tie(adjust(next_logits), next_logits, model.spec.dtype):
                    next_logits = plain(token)
            logits = step(token) if next_logits is None else next_logits
            cache.extend(1)
    rest = detokenizer.flush() if not stopped_repeating else ""
    if guard is not None:
        rest = guard.close(rest, truncated=reason == "length")
    if rest:
        yield Token(-1, rest)
    yield Answer(
        detokenizer.text if guard is None else guard.text,
        reason,
        len(ids),
        count,
        first_token_at - started,
        perf_counter() - first_token_at,
        stopped_repeating,
        count - 1 if drafted is None else drafted.passes,
        guard is not None and guard.repeats,
    )


def append_tokens(model: Model, cache: DecodeCache, ids: Sequence[int], *, chunk: int = CHUNK) -> None:
    """Append ids to a decode cache without generating; arguments as for :func:`generate`."""
    with torch.inference_mode(), model.lock:
        cache.mark()
    for part in torch.split(torch.tensor(ids, device=model.device, dtype=torch.long), chunk):
        model.forward(part, cache, logits=False)
        cache.extend(len(part))


def _advance(model: Model, cache: DecodeCache, ids: Tensor) -> Tensor:
    logits = model.forward(ids, cache, logits=True)
    cache.extend(len(ids))
    assert logits is not None
    return logits


class Detokenizer:
    """Converts token ids to text incrementally; withholds text that may begin a stop string."""

    def __init__(self, tokenizer: object, stop: Sequence[str]) -> None:
        self._backend = tokenizer._tokenizer  # type: ignore[attr-defined]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(filter(None, stop))
        self._pending = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the text that is now final."""
        self._pending += self._stream.step(self._backend, token) or ""
        starts = [start for s in self._stop if (start := self._pending.find(s)) >= 0]
        if starts:
            self._pending, self.stopped = self._pending[: min(starts)], True
            return self.flush()
        withheld = max((n for s in self._stop for n in range(len(s)) if n and self._pending.endswith(s[:n])), default=0)
        return self._release(len(self._pending) - withheld)

    def flush(self) -> str:
        """Return the withheld text."""
        return self._release(len(self._pending))

    def _release(self, count: int) -> str:
        piece, self._pending = self._pending[:count], self._pending[count:]
        self.text += piece
        return piece
