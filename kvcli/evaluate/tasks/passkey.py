"""Pass-key and number string: one number, stated twice in a text, as in InfiniteBench (arXiv:2402.13718)."""

from __future__ import annotations

from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest


def passkey(request: CaseRequest) -> Case:
    """Build a case with a five-digit number."""
    return _case(request, "pass key", vocabulary.number(request.rng, 5))


def number(request: CaseRequest) -> Case:
    """Build a case with ten digits, each digit twice in a row, which is harder to copy."""
    return _case(request, "sequence of digits", "".join(2 * d for d in vocabulary.number(request.rng, 5)))


def _case(request: CaseRequest, what: str, value: str) -> Case:
    fact = f"The {what} is {value}. Remember it. {value} is the {what}."
    text = request.haystack.hide([fact], [request.depth], request.length, request.rng)
    return Case(text, (CaseQuestion(f"What is the {what}?", (value,), "first_number"),), max_tokens=24)
