"""How often the first quotes hold the answer, ranked by words and by the model too.

A case is one question about a text. It comes from a SQuAD file, whose paragraphs are joined to one text; or from JSON
Lines about a document. Or it is about a needle: an invented fact that the question asks for in other words than the
text's.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

from kvcli.documents.document import Document
from kvcli.errors import InputError, UsageError
from kvcli.evaluate import vocabulary
from kvcli.evaluate.case import CaseRequest
from kvcli.evaluate.datasets import Data
from kvcli.evaluate.results_file import Key, Result, ResultsFile
from kvcli.evaluate.run import Finished
from kvcli.pipeline import Pipeline

WORDS, MODEL = "words", "words + model"
FIRST, THREE, WRONG = "first quote", "one of three", "wrong text"
"""Rows: the first quote holds the answer, one of three does, and a text without the answer is recognised as such."""

PHRASINGS = (
    ("The neighbours say that {k} keeps a {v} in {p}.", "What does {k} keep in {p}?"),
    ("Nobody but {k} was ever allowed to repair the {v} of {p}.", "What did {k} repair in {p}?"),
    ("It was in {p}, late one autumn, that {k} bought a {v}.", "What did {k} buy in {p}?"),
    ("A letter from {p} mentions that {k} had been painting a {v} for years.", "What did {k} paint in {p}?"),
    ("Whoever came to {p} could see {k} selling the {v} on the market.", "What does {k} sell in {p}?"),
    ("When the bridge of {p} fell, {k} lost a {v} in the river.", "What was lost by {k} in {p}?"),
)
"""Facts and their questions, in other forms and orders of the same words."""


@dataclass(frozen=True)
class QuoteCase:
    """One question about a text.

    Attributes:
        text: the text.
        question: about it.
        gold: character ranges of the text, each of which is a right answer.
        number: from 0, among all cases.
        length: requested tokens of a text that was made; ``None`` for one of its own length.
        without: a text in which the answer is not; ``None`` if the data have none.
    """

    text: str
    question: str
    gold: tuple[tuple[int, int], ...]
    number: int
    length: int | None = None
    without: str | None = None


# --- cases ---


def squad_cases(data: Data) -> list[QuoteCase]:
    """The questions of SQuAD files about all their paragraphs as one text.

    The wrong text of a question is all paragraphs but those of its article.

    Raises:
        InputError: rows that are no paragraphs with questions.
    """
    parts, asked, at = list[str](), list[tuple[str, str, tuple[tuple[int, int], ...]]](), 0
    for stem, place, row in data.rows:
        try:
            text, title = row["context"], str(row.get("title", ""))
            for qa in row["qas"]:
                starts = [(at + a["answer_start"], len(a["text"])) for a in qa["answers"]]
                asked.append((title, qa["question"], tuple((start, start + size) for start, size in starts)))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"row {place + 1} of {stem} is no SQuAD paragraph: {type(error).__name__}: {error}",
                "a SQuAD file, or a FILE with JSON Lines of questions",
            ) from None
        parts.append(text)
        at += len(text) + 2
    whole = "\n\n".join(parts)
    titles = {title for title, _, _ in asked}
    others = {
        title: "\n\n".join(row["context"] for _, _, row in data.rows if row.get("title", "") != title)
        for title in (titles if len(titles) > 1 else ())
    }
    answered = [(title, question, gold) for title, question, gold in asked if gold]
    return [QuoteCase(whole, q, gold, n, None, others.get(title)) for n, (title, q, gold) in enumerate(answered)]


def file_cases(document: Document, data: Data) -> list[QuoteCase]:
    """Questions about a document, from rows with ``question`` and ``answers``: words of the text.

    Raises:
        InputError: a row has other fields, or none of its answers is in the document.
    """
    found = []
    for number, (stem, place, row) in enumerate(data.rows):
        question, answers = row.get("question"), row.get("answers")
        if not isinstance(question, str) or not isinstance(answers, list) or not answers:
            raise InputError(
                f"row {place + 1} of {stem} has no question with answers", '{"question": "…", "answers": ["…"]}'
            )
        gold = tuple(span for answer in answers for span in _places(document.text, str(answer)))
        if not gold:
            raise InputError(f"row {place + 1} of {stem}: {document.files[0]} contains none of its answers")
        found.append(QuoteCase(document.text, question, gold, number))
    return found


def needle_case(wanted: CaseRequest) -> QuoteCase:
    """A text with one fact among others of its kind, and a question in other words."""
    rng = wanted.rng
    fact, question = PHRASINGS[wanted.number % len(PHRASINGS)]
    names = vocabulary.fresh(lambda: vocabulary.name(rng), 4)
    places = vocabulary.fresh(lambda: rng.choice(vocabulary.PLACES), 4)
    values = vocabulary.fresh(lambda: rng.choice(vocabulary.WORDS), 4)
    facts = [fact.format(k=k, p=p, v=v) for k, p, v in zip(names, places, values, strict=True)]
    depths = [wanted.depth, *(rng.random() for _ in facts[1:])]
    text = wanted.haystack.hide(facts, depths, wanted.length, rng)
    at = text.index(facts[0])
    start = text.index(values[0], at)
    gold = ((start, start + len(values[0])),)
    return QuoteCase(text, question.format(k=names[0], p=places[0]), gold, wanted.number, wanted.length)


def sample(cases: Sequence[QuoteCase], count: int | None, seed: int) -> list[QuoteCase]:
    """``count`` of the cases, drawn by ``seed``; more cases begin with the same ones. ``None`` draws all."""
    order = list(cases)
    random.Random(f"quotes {seed}").shuffle(order)
    return order[:count]


def _places(text: str, answer: str) -> Iterable[tuple[int, int]]:
    pattern = r"\s+".join(map(re.escape, answer.split()))
    return [match.span() for match in re.finditer(pattern, text)] if pattern else []


# --- the run ---


def rankings(encoder: str | None) -> tuple[str, ...]:
    """The rankings that are compared: by words, by words and model, and by words and an encoder if one is named."""
    return (WORDS, MODEL) if encoder is None else (WORDS, MODEL, f"{WORDS} + {Path(encoder).name}")


def run_quotes(
    pipeline: Pipeline, cases: Sequence[QuoteCase], rows: ResultsFile, encoder: str | None = None
) -> Generator[Finished, None, None]:
    """Look up the quotes of the cases that have no result yet.

    Args:
        pipeline: whose quotes these are, and whose model ranks.
        cases: in order.
        encoder: an embedding model or a cross-encoder that ranks too.
        rows: earlier results; new ones are added.

    Yields:
        a :class:`Finished` after each result.
    """
    wanted, ranked = keys(cases, encoder), rankings(encoder)
    with_encoder = None if encoder is None else Pipeline(pipeline.model, rerank=encoder)
    done = sum(key in rows.done for key in wanted)
    document = lru_cache(maxsize=8)(Document.of_text)
    for case in cases:
        for ranking in ranked:
            if all(key in rows.done for key in _keys(case, ranking)):
                continue
            used = pipeline if ranking in (WORDS, MODEL) or with_encoder is None else with_encoder
            for row in _measure(used, case, ranking, document(case.text), document):
                rows.add(row)
                done += 1
                yield Finished(row, done, len(wanted))


def _measure(pipeline: Pipeline, case: QuoteCase, ranking: str, document: Document, made: Any) -> list[Result]:
    began = perf_counter()
    by_model = ranking != WORDS
    found = pipeline.find_quotes(document, case.question, by_model=by_model)
    seconds = perf_counter() - began
    hits = [any(q.char_start <= a and b <= q.char_end for a, b in case.gold) for q in found.quotes]

    def row(task: str, score: bool, probability: float) -> Result:
        return Result(
            task=task,
            length=case.length,
            recipe=ranking,
            case=case.number,
            budget=None,
            tokens=0,
            kept=0,
            readings=0,
            scores=[float(score)],
            metrics=["contains"],
            answers=[json.dumps([q.text for q in found.quotes], ensure_ascii=False)],
            gold=[[case.text[a:b] for a, b in case.gold]],
            answer_s=round(seconds, 4),
            probability=round(probability, 4),
        )

    results = [row(FIRST, any(hits[:1]), found.likely), row(THREE, any(hits), found.likely)]
    if not by_model and case.without is not None:
        other = pipeline.find_quotes(made(case.without), case.question, by_model=False)
        results.append(row(WRONG, not other.found, other.likely))
    return results


def _keys(case: QuoteCase, ranking: str) -> list[Key]:
    tasks = [FIRST, THREE] + [WRONG] * (ranking == WORDS and case.without is not None)
    return [Key(task, case.length, ranking, 0, case.number) for task in tasks]


def keys(cases: Sequence[QuoteCase], encoder: str | None = None) -> list[Key]:
    """The keys of all results of some cases."""
    return [key for case in cases for ranking in rankings(encoder) for key in _keys(case, ranking)]


def separation(rows: Iterable[Result]) -> float | None:
    """AUROC: how often the probability that a text answers is larger for the right than for the wrong text.

    ``None`` without any of either.
    """
    found: dict[str, list[float]] = {FIRST: [], WRONG: []}
    for row in rows:
        if row.recipe == WORDS and row.task in found and row.probability is not None:
            found[row.task].append(row.probability)
    right, wrong = found[FIRST], found[WRONG]
    if not right or not wrong:
        return None
    return sum((r > w) + (r == w) / 2 for r in right for w in wrong) / (len(right) * len(wrong))


def quote_cases(
    document: Document | None, data: Data | None, needles: Sequence[QuoteCase], count: int | None, seed: int
) -> list[QuoteCase]:
    """The cases of a run: from ``data``, or else needles.

    Raises:
        UsageError: data without a document whose rows are questions alone.
        InputError: the data do not fit.
    """
    if data is None:
        return list(needles)
    if document is not None:
        return sample(file_cases(document, data), count, seed)
    if not any("context" in row for _, _, row in data.rows):
        raise UsageError("these questions have no text", "kvcli eval quotes FILE --data questions.jsonl")
    return sample(squad_cases(data), count, seed)
