"""Query-aware prefill (Locret-Q): the question also precedes the text, so every score depends on it."""

from __future__ import annotations

import dataclasses

from kvcli.engine.prompt import Prompt
from kvcli.recipe import Recipe


def query_aware(prompt: Prompt, recipe: Recipe, text: str, question: str) -> tuple[list[int], Recipe]:
    """Put the question before the document, and protect it from eviction.

    Args:
        prompt: the model's prompt format.
        recipe: the recipe to extend.
        text: the document.
        question: the question that will be asked about it.

    Returns:
        ids of question and document, and the recipe with a sink for each token before the text. If these do not fit
        half of the budget, the recipe is unchanged.
    """
    ids = prompt.document(text, question=question)
    head = len(ids) - len(prompt.offsets(text))
    policy = recipe.policy
    if policy.budget is None or head <= policy.sinks or head + policy.recent > policy.budget // 2:
        return ids, recipe
    return ids, dataclasses.replace(recipe, policy=dataclasses.replace(policy, sinks=head))
