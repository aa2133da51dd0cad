"""RoPE positions: how many a run needs and how many the model has. Imports no torch."""

from __future__ import annotations

from kvcli.errors import TooLongError
from kvcli.recipe import Recipe
from kvcli.types import ModelSpec


def kept_units(spec: ModelSpec, recipe: Recipe, tokens: int, layer: int) -> int:
    """Units per KV head that a layer holds after ``tokens``."""
    window = spec.sliding[layer]
    if window is not None:
        return min(tokens, window - 1)
    budget = recipe.units(layer, spec.layers)
    return tokens if budget is None else min(tokens, budget + recipe.policy.tail)


def check_positions(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, question: int) -> int:
    """The room for an answer, in tokens, before positions leave the model's trained window.

    Raises:
        TooLongError: there is none; says what the document needs and which recipe reads it.
    """
    keep = recipe.policy
    slots = max((kept_units(spec, recipe, tokens, i) for i, w in enumerate(spec.sliding) if w is None), default=0)
    if keep.positions == "original" or recipe.units(0, spec.layers) is None:
        slots = tokens
    during = slots if slots == tokens else slots + chunk
    room = spec.max_positions - max(slots + question, during)
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


def max_position(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, behind: int) -> int:
    """RoPE positions that a reading and ``behind`` tokens after it will use, in steps of 4,096.

    The steps let questions and answers of common length share a reading also where RoPE depends on it.

    Raises:
        TooLongError: as :func:`check_positions`.
    """
    room = check_positions(spec, recipe, tokens=tokens, chunk=chunk, question=0)
    return min(spec.max_positions, -(-(spec.max_positions - room + behind) // 4096) * 4096)
