"""Variable tracking: the names with a value after a chain of assignments in a text (RULER, arXiv:2404.06654)."""

from __future__ import annotations

from itertools import pairwise

from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest


def variables(request: CaseRequest, hops: int = 4, chains: int = 2) -> Case:
    """Build ``chains`` chains of ``hops`` assignments each, in order at random positions; asks for the first chain."""
    rng = request.rng
    numbers = vocabulary.fresh(lambda: vocabulary.number(rng, 5), chains)
    names = vocabulary.fresh(lambda: vocabulary.letters(rng), chains * (hops + 1))
    facts, depths = [], []
    for chain, value in enumerate(numbers):
        own = names[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        facts += [f"VAR {own[0]} = {value}"]
        facts += [f"VAR {new} = VAR {old}" for old, new in pairwise(own)]
        depths += sorted(rng.random() for _ in own)
    text = request.haystack.hide(facts, depths, request.length, rng)
    question = (
        f"Follow the assignments, VAR X = VAR Y and so on. Which {hops + 1} variables have the value {numbers[0]}?"
        " List all of them."
    )
    return Case(text, (CaseQuestion(question, tuple(names[: hops + 1]), "all"),), max_tokens=60)
