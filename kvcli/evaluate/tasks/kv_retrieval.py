"""KV retrieval: the value of one key among pairs of UUIDs (Liu et al., "Lost in the Middle", arXiv:2307.03172)."""

from __future__ import annotations

import json

from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest
from kvcli.evaluate.token_counter import fit

ANSWER = 128
"""Tokens of an answer: two UUIDs, where a tokenizer splits digits, for a model may say the key again."""


def kv(wanted: CaseRequest) -> Case:
    """As many pairs as fit."""
    rng = wanted.rng
    pairs: list[tuple[str, str]] = []

    def build(count: int) -> str:
        while len(pairs) < count:
            pairs.append((vocabulary.uuid(rng), vocabulary.uuid(rng)))
        return show(pairs[:count])

    count = fit(build, wanted.ruler, wanted.length, least=2, what="pairs of keys and values")
    key, value = pairs[int(wanted.depth * count)]
    return Case(build(count), (ask(key, value),), max_tokens=ANSWER)


def show(pairs: list[tuple[str, str]]) -> str:
    """The text of a case."""
    return "JSON data:\n" + json.dumps(dict(pairs), ensure_ascii=False).replace('", "', '",\n "')


def ask(key: str, value: str) -> CaseQuestion:
    """The question of a case."""
    return CaseQuestion(f'What is the value of the key "{key}" in the JSON data?', (value,), "contains")
