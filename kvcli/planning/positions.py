"""RoPE positions that a run needs and that the model has. Imports no torch."""

from __future__ import annotations

from kvcli.errors import TooLongError
from kvcli.recipe import Recipe
from kvcli.types import ModelSpec


def kept_units(spec: ModelSpec, recipe: Recipe, tokens: int, layer: int, *, final: bool = False) -> int:
    """Return units per KV head that a layer keeps after ``tokens``; 0 if it uses those of another layer.

    ``final``: on average over the layers, of a context, if the policy divides the budget after the text.
    """
    if recipe.share.owners(spec)[layer] != layer:
        return 0
    window = spec.sliding[layer]
    if window is not None:
        return min(tokens, window - 1)
    budget = recipe.units(recipe.share.leaders(spec)[layer], spec.layers, final=final)
    return tokens if budget is None else min(tokens, budget + recipe.policy.tail)


def check_positions(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, question: int) -> int:
    """Return the positions left for an answer, in tokens.

    Raises:
        TooLongError: none are left; states what the document needs and a recipe that reads it.
    """
    policy = recipe.policy
    slots = max((kept_units(spec, recipe, tokens, i) for i, w in enumerate(spec.sliding) if w is None), default=0)
    if policy.positions == "original" or recipe.units(0, spec.layers) is None:
        slots = tokens
    peak_slots = slots if slots == tokens else slots + chunk
    room = spec.max_positions - max(slots + question, peak_slots)
    if room < 1:
        if slots == tokens:
            raise TooLongError(
                f"the document ({tokens:,} tokens) and the question ({question:,}) exceed the context length of"
                f" {spec.name} ({spec.max_positions:,}) with '{recipe}'",
                f"--policy 'keydiff(budget={max(1, spec.max_positions // 8)})'",
            )
        raise TooLongError(
            f"the budget ({slots:,}), the chunk ({chunk:,}) and the question ({question:,} tokens) exceed the context"
            f" length of {spec.name} ({spec.max_positions:,})",
            f"--budget {max(1, spec.max_positions // 8)}",
        )
    return room


def max_position(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, after: int) -> int:
    """Return the RoPE positions that prefill and ``after`` tokens after it will use, in steps of 4,096.

    With the steps, questions and answers of common length share a prefill even if RoPE depends on the length.

    Raises:
        TooLongError: as :func:`check_positions`.
    """
    room = check_positions(spec, recipe, tokens=tokens, chunk=chunk, question=0)
    return min(spec.max_positions, -(-(spec.max_positions - room + after) // 4096) * 4096)
