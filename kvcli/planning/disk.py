"""The size of a saved prefill on disk, known before anything is read. Imports no torch."""

from __future__ import annotations

from kvcli.planning.positions import kept_units
from kvcli.recipe import Recipe
from kvcli.types import ModelSpec

_SCORE_AND_PLACE = 8  # bytes per unit beside key and value: a float32 score and an int32 position
_HEADER = 4096  # the description and the first brackets
_TENSORS, _ENTRY = 11, 110  # tensors a layer has in a saved prefill, and bytes of one's entry in the header
_STATE = 4  # bytes of a number of running statistics, of which a policy keeps about a unit's worth a layer


def disk_bytes(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, text: int) -> int:
    """Bytes of the saved reading, at most (see :mod:`kvcli.prompt_cache.serialize`).

    Its end, and for a longer text its edge: scores, places and marks of the units before the last chunk, and those that
    this chunk drives out, which are at most as many as it has tokens.

    Args:
        spec, recipe, tokens, chunk: as for :func:`kvcli.planning.memory.plan`.
        text: bytes of the document in UTF-8 and of what is known of it.
    """
    total = text + 4 * tokens + _HEADER
    if not tokens:
        return total
    body = max(0, tokens - recipe.policy.tail)
    edge = max(0, body - 1) // chunk * chunk
    for layer in range(spec.layers):
        kept = kept_units(spec, recipe, tokens, layer)
        then = min(kept_units(spec, recipe, edge, layer), kept)
        gone = then if recipe.policy.victims == "merge" else min(then, tokens - edge)
        unit = recipe.storage.unit_nbytes(spec, layer)
        total += spec.kv_heads * (kept * (unit + _SCORE_AND_PLACE) + then * (_SCORE_AND_PLACE + 1))
        if recipe.policy.victims == "merge":
            total += spec.kv_heads * 4 * (kept + then)
        total += spec.kv_heads * (gone * unit + 2 * _STATE * spec.head_dim)
        if spec.sliding[layer] is None:
            total += sum(recipe.storage.observed_nbytes(spec, layer, n) for n in (tokens, edge) if n)
        total += _TENSORS * _ENTRY
    return total
