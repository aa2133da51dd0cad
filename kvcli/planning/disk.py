"""Size of a saved prefill on disk, known before prefill. Imports no torch."""

from __future__ import annotations

from kvcli.planning.positions import kept_units
from kvcli.recipe import Recipe
from kvcli.types import ModelSpec

_SCORE_AND_POSITION = 8  # bytes per unit beside key and value: a float32 score and an int32 position
_HEADER = 4096  # metadata and fixed part of the header
_TENSORS, _ENTRY = 15, 110  # tensors per layer in a saved prefill, and bytes of one's entry in the header
_STATE = 4  # bytes of a statistic that a policy does not announce: about one unit's size per layer
_STATE_TENSORS = 256  # states of recurrent layers, at most: two a layer


def disk_bytes(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, text: int) -> int:
    """Return the maximum bytes of a saved prefill (see :mod:`kvcli.prompt_cache.serialize`).

    The file contains the frozen units and, for longer texts, the resume point before the last chunk. The latter stores
    scores, positions and marks of its units. It also stores the units that the last chunk evicted: at most one per
    token of the chunk.

    Args:
        spec, recipe, tokens, chunk: as for :func:`kvcli.planning.memory.plan`.
        text: bytes of the document in UTF-8 and of its metadata.
    """
    total = text + 4 * tokens + _HEADER
    if not tokens:
        return total
    total += 2 * (spec.state_bytes + _STATE_TENSORS * _ENTRY * bool(spec.state_bytes))
    body = max(0, tokens - recipe.policy.tail)
    resume_point = max(0, body - 1) // chunk * chunk
    for layer in range(spec.layers):
        kept = kept_units(spec, recipe, tokens, layer)
        resume_units = min(kept_units(spec, recipe, resume_point, layer), kept)
        evicted = resume_units if recipe.policy.changes_units else min(resume_units, tokens - resume_point)
        total += _TENSORS * _ENTRY
        if recipe.share.owners(spec)[layer] != layer:
            continue
        own = spec.of_layer(layer)
        unit = recipe.storage.unit_nbytes(own, layer)
        total += own.kv_heads * (kept * (unit + _SCORE_AND_POSITION) + resume_units * (_SCORE_AND_POSITION + 1))
        total += recipe.policy.state_nbytes(own, kept) + recipe.policy.state_nbytes(own, resume_units)
        total += own.kv_heads * (evicted * unit + 2 * _STATE * own.head_dim)
        if spec.sliding[layer] is None:
            total += 2 * recipe.fold.state_nbytes(own)
            total += sum(recipe.storage.observed_nbytes(own, layer, n) for n in (tokens, resume_point) if n)
    return total
