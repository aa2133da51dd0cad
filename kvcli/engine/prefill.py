"""Chunked prefill into a bounded cache, and its frozen context. Generators yield events and return the result."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from kvcli.cache.context import Context, freeze
from kvcli.cache.prefill_cache import ChunkStep, PrefillCache
from kvcli.engine.picture_rows import PictureRows
from kvcli.errors import InputError, ModelError
from kvcli.events import Prefill
from kvcli.models.bases import basis_of
from kvcli.models.model import Model
from kvcli.models.pictures import Pictures
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
    pictures: Pictures | None = None,
) -> Generator[Prefill, None, PrefillCache]:
    """Run token ids through the model under a recipe's budget.

    Args:
        model: a loaded model.
        ids: the document, template head included.
        recipe: the eviction policy and the KV storage.
        chunk: tokens per forward pass.
        probe: the question's ids, for query-aware policies; others ignore them.
        horizon: RoPE positions that prefill and answers will use, for frequencies that depend on the length (longrope,
            dynamic NTK). By default it is the smaller of document length and kept length.
        resume: an interrupted prefill cache of the same recipe and chunk size that has read ``resume.seen`` of these
            ids. The result is that of an uninterrupted prefill.
        pictures: of the text; its image tokens stand for their rows.

    Yields:
        a :class:`Prefill` after each chunk.

    Returns:
        the prefill cache, ready to be frozen.

    Raises:
        InputError: no tokens.
    """
    if not ids:
        raise InputError("the document has no tokens")
    model.check_ids(ids)
    policy = recipe.policy
    question = torch.tensor((probe or []) if policy.query_aware else [], device=model.device, dtype=torch.long)
    extra = len(question)
    tokens = torch.tensor(ids, device=model.device, dtype=torch.long)
    cache = new_prefill_cache(model, recipe, len(ids), chunk=chunk, probe=extra) if resume is None else resume
    cache.max_position = horizon or _positions(recipe, len(ids), chunk + extra)
    with model.lock:
        model.rotary.fix_length(cache.max_position)
    rows = None if pictures is None else PictureRows(model, pictures, tokens)
    started = perf_counter()
    for step in _chunk_steps(len(ids), chunk, policy.tail, extra):
        if step.start < cache.seen:
            continue
        batch = tokens[step.start : step.start + step.new]
        apart = bool(step.probe) and cache.state is not None
        if step.probe and not apart:
            batch = torch.cat([batch, question])
        embeds = None if rows is None else rows.embeds(batch, step.start, step.new)
        cache.step = replace(step, part="text") if apart else step
        logits = model.forward(batch, cache, logits="all" if policy.uses_surprise else False, embeds=embeds)
        _tell_surprise(cache, batch, logits)
        if apart:
            cache.step = replace(step, part="question")
            model.forward(question, cache, logits=False)
        cache.seen += step.new
        yield Prefill(cache.seen, len(ids), cache.kept, perf_counter() - started)
    with torch.inference_mode():
        cache.allot()
    return cache


def new_prefill_cache(model: Model, recipe: Recipe, tokens: int, *, chunk: int = CHUNK, probe: int = 0) -> PrefillCache:
    """Create an empty prefill cache for ``tokens`` tokens, with ``probe`` question tokens after each chunk.

    Raises:
        ModelError: the policy needs retaining heads, or the storage a calibration or known weights, and the model has
            none. Also if the policy changes latents.
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
    if model.spec.latent and recipe.policy.changes_units:
        raise ModelError(
            f"'{recipe.policy.name}' changes keys and values apart, and {model.name} keeps both as one latent",
            "--policy keydiff",
        )
    if model.spec.devices and recipe.storage.offloads:
        raise ModelError(
            f"'+{recipe.storage.name}' keeps units in main memory, which a model over several GPUs cannot use",
            f"--policy '{recipe.policy.name}', without a storage",
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
        basis=basis_of(model) if recipe.storage.needs_basis else None,
        state=model.empty_state(),
        share=recipe.share,
        sparse=recipe.sparse_prefill.open(model.spec),
        folding=recipe.fold.open(model.spec, model.device, model.rotary),
    )


def prefill(
    model: Model,
    ids: Sequence[int],
    recipe: Recipe,
    *,
    chunk: int = CHUNK,
    probe: Sequence[int] | None = None,
    horizon: int | None = None,
    pictures: Pictures | None = None,
) -> Generator[Prefill, None, Context]:
    """Prefill and freeze; arguments as for :func:`prefill_steps`."""
    cache = yield from prefill_steps(model, ids, recipe, chunk=chunk, probe=probe, horizon=horizon, pictures=pictures)
    with torch.inference_mode(), model.lock:
        return freeze(cache, recipe.storage)


def evict_turns(
    model: Model, cache: PrefillCache, ids: Sequence[int], recipe: Recipe, *, chunk: int = CHUNK
) -> Generator[Prefill, None, Context]:
    """Evict the turns after a document into its context, so that a conversation runs at fixed memory.

    The prefill cache survives beside the context frozen from it (``freeze(…, release=False)``) and reads the turns' ids
    as further chunks. The caller then drops the old context and decode cache. No chunk counts as the last, so
    stabilizers protect the newest turns. The cost is a prefill of the turns and a second copy of the kept units. In
    return the result equals that of one longer document: the policy scores the turns by its own measure, from their
    queries.

    Args:
        model: a loaded model, its RoPE length fixed as for the prefill.
        cache: the prefill cache that the context was frozen from, or an empty one. Do not use it again if the generator
            is closed early: layers may differ in what they have read.
        ids: the ids in the decode cache.
        recipe: the recipe of ``cache``.
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
    started, before = perf_counter(), cache.seen
    with torch.inference_mode():
        cache.reserve(before + len(ids), min(chunk, len(ids)))
    for part in torch.split(torch.tensor(ids, device=model.device, dtype=torch.long), chunk):
        cache.step = ChunkStep(cache.seen, len(part))
        _tell_surprise(cache, part, model.forward(part, cache, logits="all" if recipe.policy.uses_surprise else False))
        cache.seen += len(part)
        yield Prefill(cache.seen - before, len(ids), cache.kept, perf_counter() - started)
    return freeze_and_keep(cache, recipe)


def freeze_and_keep(cache: PrefillCache, recipe: Recipe) -> Context:
    """Freeze a prefill cache but keep it, so that :func:`evict_turns` can continue it."""
    with torch.inference_mode():
        context = freeze(cache, recipe.storage, release=False)
        cache.release()
    return context


def _tell_surprise(cache: PrefillCache, ids: Tensor, logits: Tensor | None) -> None:
    """Tell the policy how surprising a chunk was, if it asked for the logits."""
    if logits is None:
        return
    new = cache.step.new
    with torch.inference_mode():
        found = surprise(logits[: new - 1], ids[1:new])
        cache.tell(torch.cat([found.max()[None] if new > 1 else found.new_zeros(1), found]))


def surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """Compute ``-log p`` of each id under its row of logits ``[n, vocab]``: float32 ``[n]``."""
    found = logits.new_empty(len(ids), dtype=torch.float32)
    for start in range(0, len(ids), 64):  # float32 copies of a few rows only
        rows, part = logits[start : start + 64].float(), ids[start : start + 64, None]
        found[start : start + 64] = rows.logsumexp(dim=1) - rows.gather(1, part)[:, 0]
    return found


def last_chunk_boundary(tokens: int, chunk: int, tail: int) -> int:
    """Return the number of tokens before the body's last chunk, whose eviction knows that nothing follows.

    Up to there, documents with the same beginning have the same prefill cache, whatever their lengths.
    """
    body = max(0, tokens - tail)
    return max(0, body - 1) // chunk * chunk


def _chunk_steps(tokens: int, chunk: int, tail: int, probe: int) -> Iterator[ChunkStep]:
    """Yield the chunks of a document: its body with eviction, then its protected tail without."""
    body = max(0, tokens - tail)
    for start in range(0, body, chunk):
        new = min(chunk, body - start)
        yield ChunkStep(start, new, probe, last=start + new == body)
    for start in range(body, tokens, chunk):
        yield ChunkStep(start, min(chunk, tokens - start), probe, last=True, evict=False)


def _positions(recipe: Recipe, tokens: int, chunk: int) -> int:
    policy = recipe.policy
    budget = recipe.units(0, 1)
    if budget is None or policy.positions == "original":
        return tokens
    return min(tokens, round(budget * (1 + policy.pyramid)) + policy.tail + chunk)
