"""Needles: invented facts between the sentences of a text, asked for in their own words.

The variants are those of RULER (Hsieh et al., arXiv:2404.06654). A text has one fact, one among others of its kind, or
one with several values. It may also have several facts, each asked for after the same prefill. Training of heads uses
other sentences (:mod:`kvcli.retaining_heads.facts`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest

VALUES = ("number", "name", "word")
"""Kinds of values, which cases use in turn."""


@dataclass(frozen=True)
class NeedleShape:
    """A phrasing: ``{k}`` is the key, a place or a person, and ``{v}`` the value."""

    values: str
    key: str
    sentence: str
    question: str


# Plain on purpose: the task measures whether a fact was kept, not whether a small model understands the question.
SHAPES = (
    NeedleShape("number", "place", "The postal code of {k} is {v}.", "What is the postal code of {k}?"),
    NeedleShape("number", "place", "The population of {k} is {v}.", "What is the population of {k}?"),
    NeedleShape(
        "number",
        "place",
        "The museum vault in {k} opens with the digits {v}.",
        "Which digits open the museum vault in {k}?",
    ),
    NeedleShape(
        "number",
        "person",
        "The membership card that {k} lost bears the digits {v}.",
        "Which digits does the membership card that {k} lost bear?",
    ),
    NeedleShape(
        "name",
        "place",
        "The conductor of the orchestra in {k} is called {v}.",
        "What is the conductor of the orchestra in {k} called?",
    ),
    NeedleShape(
        "name",
        "place",
        "The portrait in the library of {k} shows {v}.",
        "Whom does the portrait in the library of {k} show?",
    ),
    NeedleShape("name", "person", "The fencing teacher of {k} is {v}.", "Who is the fencing teacher of {k}?"),
    NeedleShape("name", "person", "The roommate of {k} was named {v}.", "What was the roommate of {k} named?"),
    NeedleShape(
        "word", "place", "The watchword of the sentries in {k} is {v}.", "What is the watchword of the sentries in {k}?"
    ),
    NeedleShape("word", "place", "The ferry to {k} is called the {v}.", "What is the ferry to {k} called?"),
    NeedleShape(
        "word", "place", "The dialect word for rain in {k} is {v}.", "What is the dialect word for rain in {k}?"
    ),
    NeedleShape("word", "person", "The racing horse of {k} is named {v}.", "What is the racing horse of {k} named?"),
)


def single(request: CaseRequest) -> Case:
    """Build a case with one fact."""
    rng, shape = request.rng, _shape(request)
    (key,), (value,) = _keys(shape, rng, 1), _values(shape, rng, 1)
    text = request.haystack.hide([_say(shape, key, value)], [request.depth], request.length, rng)
    return Case(text, (_ask(shape, key, [value]),), tags=_tags(request, shape))


def multikey(request: CaseRequest, count: int = 4) -> Case:
    """Build a case with ``count`` facts of one phrasing about different keys, of which one is asked for."""
    rng, shape = request.rng, _shape(request)
    keys, values = _keys(shape, rng, count), _values(shape, rng, count)
    depths = [request.depth, *(rng.random() for _ in keys[1:])]
    facts = [_say(shape, k, v) for k, v in zip(keys, values, strict=True)]
    text = request.haystack.hide(facts, depths, request.length, rng)
    return Case(text, (_ask(shape, keys[0], values[:1]),), tags=_tags(request, shape))


def multivalue(request: CaseRequest, count: int = 4) -> Case:
    """Build a case with ``count`` values for one key, each in a sentence, all asked for at once."""
    rng, shape = request.rng, _shape(request)
    (key,), values = _keys(shape, rng, 1), _values(shape, rng, count)
    facts = [_say(shape, key, v) for v in values]
    text = request.haystack.hide(facts, [rng.random() for _ in facts], request.length, rng)
    asked = _ask(shape, key, values)
    question = f"{asked.text} The text names {count} of them; list all."
    return Case(
        text,
        (CaseQuestion(question, asked.gold, "all"),),
        max_tokens=96,
        tags={"values": shape.values},
    )


def multiquery(request: CaseRequest, count: int = 8, others: Sequence[tuple[str, CaseQuestion]] = ()) -> Case:
    """Build a case with ``count`` facts of all phrasings and ``others``, each asked for after the same prefill."""
    rng = request.rng
    shapes = rng.sample(SHAPES, count)
    taken: list[str] = []
    facts, questions = [], []
    for shape in shapes:
        (key,), (value,) = _keys(shape, rng, 1, taken), _values(shape, rng, 1, taken)
        taken += [key, value]
        facts.append(_say(shape, key, value))
        questions.append(_ask(shape, key, [value]))
    facts += [fact for fact, _ in others]
    questions += [question for _, question in others]
    text = request.haystack.hide(facts, [rng.random() for _ in facts], request.length, rng)
    return Case(text, tuple(questions))


def fidelity(request: CaseRequest) -> Case:
    """Build a case with four facts of all phrasings, each asked for after the same prefill."""
    return multiquery(request, 4)


def _shape(request: CaseRequest) -> NeedleShape:
    values = VALUES[request.number % len(VALUES)]
    return request.rng.choice([shape for shape in SHAPES if shape.values == values])


def _tags(request: CaseRequest, shape: NeedleShape) -> dict[str, str]:
    return {"values": shape.values, "depth": f"{25 * int(4 * request.depth)}-{25 * int(4 * request.depth) + 25} %"}


def _say(shape: NeedleShape, key: str, value: str) -> str:
    return shape.sentence.format(k=key, v=value)


def _ask(shape: NeedleShape, key: str, values: Sequence[str]) -> CaseQuestion:
    return CaseQuestion(shape.question.format(k=key), tuple(values), "contains")


def _keys(shape: NeedleShape, rng: random.Random, count: int, taken: Sequence[str] = ()) -> list[str]:
    def make() -> str:
        return rng.choice(vocabulary.PLACES) if shape.key == "place" else vocabulary.name(rng)

    return vocabulary.fresh(make, count, taken)


def _values(shape: NeedleShape, rng: random.Random, count: int, taken: Sequence[str] = ()) -> list[str]:
    def make() -> str:
        match shape.values:
            case "number":
                return vocabulary.number(rng, rng.randint(4, 7))
            case "name":
                return vocabulary.name(rng)
        return rng.choice(vocabulary.WORDS)

    return vocabulary.fresh(make, count, taken)
