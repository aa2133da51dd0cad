"""KV retrieval: the value of one key among pairs of UUIDs (Liu et al., "Lost in the Middle", arXiv:2307.03172)."""

from __future__ import annotations

import json

from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest
from kvcli.evaluate.token_counter import fit

ANSWER = 128
"""Maximum answer tokens: two UUIDs with digits split, as a model may repeat the key."""


def kv(request: CaseRequest) -> Case:
    """Build a case with as many pairs as fit."""
    rng = request.rng
    pairs: list[tuple[str, str]] = []

    def build(count: int) -> str:
        while len(pairs) < count:
            pairs.append((vocabulary.uuid(rng), vocabulary.uuid(rng)))
        return show(pairs[:count])

    count = fit(build, request.counter, request.length, least=2, what="pairs of keys and values")
    key, value = pairs[int(request.depth * count)]
    return Case(build(count), (ask(key, value),), max_tokens=ANSWER)


def show(pairs: list[tuple[str, str]]) -> str:
    """Format the pairs as the text of a case."""
    return "JSON data:\n" + json.dumps(dict(pairs), ensure_ascii=False).replace('", "', '",\n "')


def ask(key: str, value: str) -> CaseQuestion:
    """Build the question of a case."""
    return CaseQuestion(f'What is the value of the key "{key}" in the JSON data?', (value,), "contains")
