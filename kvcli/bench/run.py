"""One measurement: prefill and question on random tokens, with the calls of ``kvcli ask --no-cache``.

No timing depends on the values of the tokens.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from kvcli.bench.check import draw
from kvcli.bench.peak import Peak
from kvcli.bench.roofline import full_flop, prefill_flop, synchronize
from kvcli.documents.document import Document
from kvcli.errors import ResourceError
from kvcli.events import Answer, Prefill, only_prefill
from kvcli.models.model import Model
from kvcli.pipeline import Pipeline, TokenizedDocument
from kvcli.planning import memory
from kvcli.planning.positions import check_positions
from kvcli.recipe import Recipe

QUESTION = 32
"""Tokens of the question after the text."""

_WARM = 4  # tokens of the answer that warms up


@dataclass(frozen=True)
class Speed:
    """Measured speeds; medians of repetitions.

    Attributes:
        prefill_s: seconds of prefill, freezing included.
        flop: arithmetic of the prefill.
        ttft_s: seconds from the question to the first token, after prefill.
        decode_s: seconds per token after the first.
        decode_bytes: weights, kept units and decode cache that one token reads, in the middle of the answer.
        peak, planned: bytes above the loaded model; ``peak`` is ``None`` if the system does not count it.
        kept, kv_bytes, bits: units per KV head, bytes and effective bits of kept units.
    """

    tokens: int
    prefill_s: float
    flop: float
    ttft_s: float
    decode_s: float
    decode_bytes: int
    peak: int | None
    planned: int | None
    kept: int
    kv_bytes: int
    bits: float

    @property
    def prefill_tps(self) -> float:
        return self.tokens / self.prefill_s

    @property
    def decode_tps(self) -> float:
        return 1 / self.decode_s


def measure(
    model: Model, recipe: Recipe, tokens: int, answer: int, *, chunk: int, repeat: int = 1
) -> Generator[Prefill, None, Speed]:
    """Read ``tokens`` tokens under a recipe and generate ``answer`` tokens, ``repeat`` times after a warm-up.

    Raises:
        TooLongError: the model has too few positions under this recipe.
        ResourceError: too little memory.
    """
    model = replace(model, eos=frozenset())  # answers have exactly the requested length
    spec = model.spec
    plan, longest = memory.plan_run(spec, recipe, tokens=tokens, chunk=chunk, question=QUESTION, answer=answer)
    if longest < answer:
        check_positions(spec, recipe, tokens=tokens, chunk=chunk, question=QUESTION + answer)
    plan.check_devices(spec)
    ids, question = draw(model, tokens, 3), draw(model, QUESTION, 4)
    pipeline, empty = Pipeline(model, recipe, chunk_size=chunk), Document.of_text("")
    for _ in _once(pipeline, TokenizedDocument(empty, ids[: 2 * chunk]), question, _WARM):
        pass
    found = []
    for _ in range(repeat):
        peak = Peak(spec.device)
        once = yield from _once(pipeline, TokenizedDocument(empty, ids), question, answer)
        found.append((once, peak.bytes()))
    last = found[-1][0]
    tail = (QUESTION + answer // 2) * spec.row_bytes
    return Speed(
        tokens=tokens,
        prefill_s=median(once.prefill_s for once, _ in found),
        flop=prefill_flop(spec, recipe, tokens=tokens, chunk=chunk, probe=QUESTION if recipe.policy.query_aware else 0),
        ttft_s=median(once.ttft_s for once, _ in found),
        decode_s=median(once.decode_s for once, _ in found),
        decode_bytes=model.read_bytes + last.kv_bytes + tail,
        peak=max((p for _, p in found if p is not None), default=None),
        planned=plan.total - plan.weights,
        kept=last.kept,
        kv_bytes=last.kv_bytes,
        bits=last.bits,
    )


@dataclass(frozen=True)
class _Once:
    prefill_s: float
    ttft_s: float
    decode_s: float
    kept: int
    kv_bytes: int
    bits: float


def _once(
    pipeline: Pipeline, source: TokenizedDocument, question: list[int], answer: int
) -> Generator[Prefill, None, _Once]:
    synchronize(pipeline.model.spec.device)
    began = perf_counter()
    events = pipeline.prefill_events(source, recipe=pipeline.recipe, question=question, max_tokens=answer)
    context = yield from only_prefill(events)
    synchronize(pipeline.model.spec.device)
    read_s = perf_counter() - began
    *_, end = pipeline.ask(context, question, max_tokens=answer, passages=0, allow_repetition=True, drafts=False)
    kv = context.context
    assert kv is not None
    assert isinstance(end, Answer)
    step = end.decode_s / (end.completion_tokens - 1)
    return _Once(read_s, end.first_token_s, step, kv.kept, kv.nbytes, kv.bits)


@torch.inference_mode()
def full(model: Model, tokens: int, answer: int) -> Speed:
    """Measure transformers in the same process: one forward pass over the text, one over the question, greedy decoding,
    with its cache and its SDPA attention.

    Raises:
        ResourceError: it does not fit.
    """
    spec = model.spec
    ids, question = (torch.tensor([draw(model, n, i)], device=model.device) for n, i in ((tokens, 3), (QUESTION, 4)))
    with model.reference() as module:

        def step(given: Tensor, cache: Any) -> tuple[Tensor, Any]:
            out = module(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            int(token)  # waits for the device
            return token, out.past_key_values

        try:
            step(ids[:, :64], None)
            peak = Peak(spec.device)
            began = perf_counter()
            _, cache = step(ids, None)
            read = perf_counter()
            token, cache = step(question, cache)
            first = perf_counter()
            for _ in range(answer - 1):
                token, cache = step(token, cache)
            decode_s = (perf_counter() - first) / (answer - 1)
        except torch.OutOfMemoryError:
            raise ResourceError(f"transformers' full attention of {tokens:,} tokens is out of memory") from None
    unit = spec.row_bytes
    return Speed(
        tokens=tokens,
        prefill_s=read - began,
        flop=full_flop(spec, tokens),
        ttft_s=first - read,
        decode_s=decode_s,
        decode_bytes=model.read_bytes + unit * (tokens + QUESTION + answer // 2),
        peak=peak.bytes(),
        planned=None,
        kept=tokens,
        kv_bytes=unit * tokens,
        bits=16,
    )
