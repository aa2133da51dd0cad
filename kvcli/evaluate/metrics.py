"""Metrics as their benchmarks define them; every score is in [0, 1], higher is better.

``contains``, ``all`` and ``any`` are RULER's string matches, but on whole words; ``first_number`` is InfiniteBench's;
``f1`` and ``exact`` are SQuAD's; ``choice`` is L-Eval's; ``rouge``, ``classes``, ``paragraph``, ``count`` and ``code``
are LongBench's. Chinese is split into characters instead of words, which needs no dictionary and differs slightly from
the published figures.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from kvcli.evaluate.case import CaseQuestion

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_HAN_MARKS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》「」『』【】…—“”‘’·"


def score(answer: str, question: CaseQuestion) -> float:
    """Score an answer by the question's metric."""
    if question.first_line:
        answer = answer.lstrip("\n").split("\n")[0]
    return METRICS[question.metric](answer, question)


def normalise(text: str) -> str:
    """Normalize as SQuAD does: lower case, no punctuation, no articles, single spaces."""
    text = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    """Split into normalized words; Chinese into characters."""
    if _CHINESE.search(text):
        text = _CHINESE.sub(r" \g<0> ", text.translate(str.maketrans("", "", _HAN_MARKS)))
    return normalise(text).split()


def _holds(answer: str, gold: str) -> bool:
    """Whether the answer contains these whole words in this order."""
    wanted = re.escape(" ".join(gold.split()).casefold())
    return re.search(rf"(?<!\w){wanted}(?!\w)", " ".join(answer.split()).casefold()) is not None


def _contains(answer: str, question: CaseQuestion) -> float:
    return float(_holds(answer, question.gold[0]))


def _all(answer: str, question: CaseQuestion) -> float:
    return sum(_holds(answer, gold) for gold in question.gold) / len(question.gold)


def _any(answer: str, question: CaseQuestion) -> float:
    text = f" {normalise(answer)} "
    return float(any(f" {normalise(gold)} " in text for gold in question.gold if normalise(gold)))


def _first_number(answer: str, question: CaseQuestion) -> float:
    found = re.search(r"\d+", answer)
    return float(found is not None and found[0] == question.gold[0])


def _exact(answer: str, question: CaseQuestion) -> float:
    return float(any(_words(answer) == _words(gold) for gold in question.gold))


def f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Compute the harmonic mean of precision and recall of two bags of words."""
    common = (Counter(answer) & Counter(gold)).total()
    return 2 * common / (len(answer) + len(gold)) if common else 0.0


def _f1(answer: str, question: CaseQuestion) -> float:
    return max(f1(_words(answer), _words(gold)) for gold in question.gold)


def rouge_l(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Compute the F1 of the longest common subsequence (Lin 2004)."""
    row = [0] * (len(gold) + 1)
    for word in answer:
        diagonal = 0
        for j, other in enumerate(gold, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return 2 * row[-1] / (len(answer) + len(gold)) if row[-1] else 0.0


def _rouge(answer: str, question: CaseQuestion) -> float:
    def split(text: str) -> list[str]:
        return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())

    return max(rouge_l(split(answer), split(gold)) for gold in question.gold)


def _code(answer: str, question: CaseQuestion) -> float:
    """Compute the edit similarity of the first code line."""
    lines = [line for line in answer.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//"))]
    line = lines[0] if lines else ""
    return max(SequenceMatcher(None, line, gold, autojunk=False).ratio() for gold in question.gold)


def _classes(answer: str, question: CaseQuestion) -> float:
    """Score 1 over the number of named classes if the right one is among them; parts of its name do not count."""
    gold = question.gold[0]
    named = [c for c in question.choices if c in answer and (c == gold or c not in gold)]
    return 1 / len(named) if gold in named else 0.0


def _numbers(answer: str, gold: str) -> float:
    """Compute the share of the answer's numbers that equal the right one."""
    found = re.findall(r"\d+", answer)
    return found.count(gold) / len(found) if found else 0.0


def _count(answer: str, question: CaseQuestion) -> float:
    return _numbers(answer, question.gold[0])


def _paragraph(answer: str, question: CaseQuestion) -> float:
    wanted = re.search(r"\d+", question.gold[0])
    return _numbers(answer, wanted[0]) if wanted else 0.0


_RUN = re.compile(r"\(?([A-F](?:\s*(?:,|&|and)?\s*\(?[A-F]\)?)*)\)?(?=\s*(?:$|\n|[.:)]))")
_SAID = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-F])\b", re.IGNORECASE)


def letters(answer: str, choices: Sequence[str] = ()) -> str:
    """Return the options that an answer names, as sorted letters; empty if none.

    In this order: letters at its beginning (``B``, ``B. Paris``, ``A and C``), "the answer is B", the first letter in
    brackets, the only option whose words it contains.
    """
    answer = answer.strip()
    if run := _RUN.match(answer):
        return "".join(sorted(set(re.findall(r"[A-F]", run[1]))))
    if said := _SAID.search(answer) or re.search(r"\(([A-F])\)", answer):
        return said[1].upper()
    words = normalise(answer)
    named = [i for i, text in enumerate(choices) if normalise(text) and normalise(text) in words]
    return string.ascii_uppercase[named[0]] if len(named) == 1 else ""


def _choice(answer: str, question: CaseQuestion) -> float:
    """Score 1 for the right letters; a quarter for some of several right ones and no wrong one (L-Eval's Coursera)."""
    given, gold = set(letters(answer, question.choices)), set(question.gold[0])
    if given == gold:
        return 1.0
    return 0.25 if given and given < gold else 0.0


def _truth(answer: str, question: CaseQuestion) -> float:
    """Whether the first ``true`` or ``false`` in an answer is right."""
    found = re.search(r"\b(true|false)\b", answer, re.IGNORECASE)
    return float(found is not None and found[0].lower() == question.gold[0].lower())


METRICS: dict[str, Callable[[str, CaseQuestion], float]] = {
    "contains": _contains,
    "all": _all,
    "any": _any,
    "first_number": _first_number,
    "exact": _exact,
    "f1": _f1,
    "rouge": _rouge,
    "code": _code,
    "classes": _classes,
    "count": _count,
    "paragraph": _paragraph,
    "choice": _choice,
    "truth": _truth,
}
"""Metrics by name."""
