"""Pass-key and number string: one number, stated twice in a text, as in InfiniteBench (arXiv:2402.13718)."""

from __future__ import annotations

from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest


def passkey(wanted: CaseRequest) -> Case:
    """Build a case with a five-digit number."""
    return _case(wanted, "pass key", vocabulary.number(wanted.rng, 5))


def number(wanted: CaseRequest) -> Case:
    """Build a case with ten digits, each digit twice in a row, which is harder to copy."""
    return _case(wanted, "sequence of digits", "".join(2 * d for d in vocabulary.number(wanted.rng, 5)))


def _case(wanted: CaseRequest, what: str, value: str) -> Case:
    fact = f"The {what} is {value}. Remember it. {value} is the {what}."
    text = wanted.haystack.hide([fact], [wanted.depth], wanted.length, wanted.rng)
    return Case(text, (CaseQuestion(f"What is the {what}?", (value,), "first_number"),), max_tokens=24)
