"""Reading for one question (Locret-Q): it stands before the text too, so every unit is judged knowing it."""

from __future__ import annotations

import dataclasses

from kvcli.engine.prompt import Prompt
from kvcli.recipe import Recipe


def query_aware(prompt: Prompt, recipe: Recipe, text: str, question: str) -> tuple[list[int], Recipe]:
    """What to read, and the recipe with the question protected from eviction.

    Args:
        prompt: how the model wants to be spoken to.
        recipe: which units survive.
        text: the document.
        question: to be asked of it afterwards.

    Returns:
        ids of the document with the question in front, and the recipe with as many sinks as stand before the text;
        where the budget has no room for them all, the recipe as it was.
    """
    ids = prompt.document(text, focus=question)
    head = len(ids) - len(prompt.offsets(text))
    keep = recipe.policy
    if keep.budget is None or head <= keep.sinks:
        return ids, recipe
    if head + keep.recent > keep.budget // 2:
        return ids, recipe
    return ids, dataclasses.replace(recipe, policy=dataclasses.replace(keep, sinks=head))
