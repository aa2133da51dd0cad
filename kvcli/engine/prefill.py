"""Chunked prefill into a bounded cache, and the frozen context it leaves.

Generators yield events; the generator's return value is the result. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from time import perf_counter

import torch

from kvcli.cache.context import Context, freeze
from kvcli.cache.prefill_cache import ChunkStep, PrefillCache
from kvcli.errors import InputError, ModelError
from kvcli.events import Prefill
from kvcli.models.model import Model
from kvcli.recipe import Recipe
from kvcli.types import CHUNK


def prefill_steps(
    model: Model,
    ids: Sequence[int],
    recipe: Recipe,
    *,
    chunk: int = CHUNK,
    probe: Sequence[int] | None = None,
    horizon: int | None = None,
    resume: PrefillCache | None = None,
) -> Generator[Prefill, None, PrefillCache]:
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
    model.check_ids(ids)
    keep = recipe.policy
    question = torch.tensor((probe or []) if keep.query_aware else [], device=model.device, dtype=torch.long)
    extra = len(question)
    tokens = torch.tensor(ids, device=model.device, dtype=torch.long)
    work = new_prefill_cache(model, recipe, len(ids), chunk=chunk, probe=extra) if resume is None else resume
    work.max_position = horizon or _positions(recipe, len(ids), chunk + extra)
    with model.lock:
        model.rotary.fix_length(work.max_position)
    began = perf_counter()
    for step in _chunk_steps(len(ids), chunk, keep.tail, extra):
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


def new_prefill_cache(model: Model, recipe: Recipe, tokens: int, *, chunk: int = CHUNK, probe: int = 0) -> PrefillCache:
    """An empty working set for a document of ``tokens``, and for questions of ``probe`` tokens behind each chunk.

    Raises:
        ModelError: the policy scores with retaining heads and the model has none, or its hold needs a calibration.
    """
    if recipe.policy.needs_heads and model.heads is None:
        raise ModelError(
            f"'{recipe.policy.name}' needs retaining heads, and none exist for {model.name}",
            f"kvcli train -m {model.name} -o heads.safetensors FILE…, or --policy keydiff",
        )
    if recipe.storage.calibrated == "must" and not model.calibration:
        raise ModelError(
            f"'{recipe}' needs a calibration, and none exists for {model.name}",
            f"kvcli calibrate -m {model.name} FILE…, or another skew",
        )
    return PrefillCache(
        model.spec,
        recipe.policy,
        model.rotary,
        tokens=tokens,
        chunk=min(chunk, tokens) + probe,
        dtype=model.dtype,
        device=model.device,
        heads=model.heads if recipe.policy.needs_heads else None,
        storage=recipe.storage,
        calibration=model.calibration if recipe.storage.calibrated != "never" else None,
    )


def prefill(
    model: Model,
    ids: Sequence[int],
    recipe: Recipe,
    *,
    chunk: int = CHUNK,
    probe: Sequence[int] | None = None,
    horizon: int | None = None,
) -> Generator[Prefill, None, Context]:
    """Fill and freeze; arguments as for :func:`prefill_steps`."""
    work = yield from prefill_steps(model, ids, recipe, chunk=chunk, probe=probe, horizon=horizon)
    with torch.inference_mode(), model.lock:
        return freeze(work, recipe.storage)


def evict_turns(
    model: Model, work: PrefillCache, ids: Sequence[int], recipe: Recipe, *, chunk: int = CHUNK
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
        raise InputError("there are no tokens to process")
    began, before = perf_counter(), work.seen
    with torch.inference_mode():
        work.reserve(before + len(ids), min(chunk, len(ids)))
    for part in torch.split(torch.tensor(ids, device=model.device, dtype=torch.long), chunk):
        work.step = ChunkStep(work.seen, len(part))
        model.forward(part, work, logits=False)
        work.seen += len(part)
        yield Prefill(work.seen - before, len(ids), work.kept, perf_counter() - began)
    return freeze_and_keep(work, recipe)


def freeze_and_keep(work: PrefillCache, recipe: Recipe) -> Context:
    """The context of a fill that is kept, to be read on in by :func:`evict_turns`."""
    with torch.inference_mode():
        context = freeze(work, recipe.storage, release=False)
        work.release()
    return context


def last_chunk_boundary(tokens: int, chunk: int, tail: int) -> int:
    """Tokens read before the last step of a document's body, whose eviction knows that nothing follows.

    Up to there two documents that begin alike are read alike, however long they are.
    """
    body = max(0, tokens - tail)
    return max(0, body - 1) // chunk * chunk


def _chunk_steps(tokens: int, chunk: int, tail: int, probe: int) -> Iterator[ChunkStep]:
    """The chunks of a document: its body with eviction, then its protected tail without."""
    body = max(0, tokens - tail)
    for start in range(0, body, chunk):
        new = min(chunk, body - start)
        yield ChunkStep(start, new, probe, last=start + new == body)
    for start in range(body, tokens, chunk):
        yield ChunkStep(start, min(chunk, tokens - start), probe, last=True, evict=False)


def _positions(recipe: Recipe, tokens: int, chunk: int) -> int:
    keep = recipe.policy
    budget = recipe.units(0, 1)
    if budget is None or keep.positions == "original":
        return tokens
    return min(tokens, round(budget * (1 + keep.pyramid)) + keep.tail + chunk)
