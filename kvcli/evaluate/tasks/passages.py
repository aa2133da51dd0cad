"""Multi-document QA from passages with questions and answers.

The passage with the answer is placed among others without it (Liu et al., "Lost in the Middle", arXiv:2307.03172). As a
control the model reads that passage alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvcli.errors import InputError, UsageError
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest, PoolPassage
from kvcli.evaluate.metrics import normalise


def multidoc(request: CaseRequest) -> Case:
    """Build a case of passages up to the length, with the right one at the case's depth."""
    passages, gold, question, answers = _choose(request)
    others = [p for p in passages if p is not gold and p.text != gold.text and not _has(p, answers)]
    request.rng.shuffle(others)
    counter, room = request.counter, request.length - request.counter.overhead
    room -= counter.pieces([gold.show(999)])[0]
    taken: list[PoolPassage] = []
    for other, tokens in zip(others, counter.pieces([p.show(999) for p in others]), strict=True):
        if tokens > room:
            break
        room -= tokens
        taken.append(other)
    else:
        if room > request.length // 20 + 1000:
            raise InputError(
                f"{len(passages):,} passages are {request.length - room:,} tokens together, fewer than the"
                f" {request.length:,} to be read",
                "a smaller --lengths, or more passages with --data",
            )
    if not taken:
        raise UsageError(f"{request.length:,} tokens are too few for two passages", "--lengths 2K")
    at = int(request.depth * (len(taken) + 1))
    text = "".join(p.show(n) for n, p in enumerate([*taken[:at], gold, *taken[at:]], 1))
    return Case(text, (CaseQuestion(question, answers, "any"),), tags={"documents": str(len(taken) + 1)})


def gold(request: CaseRequest) -> Case:
    """Build the control of ``multidoc``'s case of that number: the right passage alone."""
    _, passage, question, answers = _choose(request)
    return Case(passage.show(1), (CaseQuestion(question, answers, "any"),))


def _choose(request: CaseRequest) -> tuple[Sequence[PoolPassage], PoolPassage, str, tuple[str, ...]]:
    """Choose the question of a case: the same for every length, and distinct between cases if there are enough."""
    if request.passages is None:
        raise UsageError(f"'{request.task}' needs passages", f"kvcli eval {request.task} --data PASSAGES.jsonl")
    found = request.passages.all
    asked = [(p, q, a) for p in found for q, a in p.asked if a]
    order = list(range(len(asked)))
    random.Random(f"passages {request.seed}").shuffle(order)
    passage, question, answers = asked[order[request.number % len(order)]]
    return found, passage, question, answers


def _has(passage: PoolPassage, answers: Sequence[str]) -> bool:
    text = f" {normalise(passage.text)} "
    return any(f" {normalise(a)} " in text for a in answers if normalise(a))
