"""Quotes are right if they hold the answer at its place, and a run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvcli.documents.document import Document
from kvcli.errors import InputError, UsageError
from kvcli.evaluate import datasets, quotes
from kvcli.evaluate.case import CaseRequest
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.results_file import ResultsFile
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.pipeline import Pipeline

PARAGRAPHS = {
    "Ferries": [("The ferry leaves at noon. It returns at dusk.", "When does the ferry leave?", "noon")],
    "Parrots": [
        ("The harbour master owns two parrots.", "How many parrots does the harbour master own?", "two"),
        ("A parrot lives for sixty years.", "How long does a parrot live?", "sixty years"),
    ],
}


def squad(folder: Path) -> datasets.Data:
    articles = []
    for title, rows in PARAGRAPHS.items():
        made = []
        for text, question, answer in rows:
            answers = [{"text": answer, "answer_start": text.index(answer)}]
            made.append({"context": text, "qas": [{"question": question, "answers": answers}]})
        articles.append({"title": title, "paragraphs": made})
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    return datasets.read([str(folder / "squad.json")])


def run(model: Any, cases: list[quotes.QuoteCase], path: Path | None = None) -> ResultsFile:
    rows = ResultsFile(path, {"model": "tiny"})
    list(quotes.run_quotes(Pipeline(model), cases, rows))
    return rows


def test_answers_are_at_their_places_in_the_joined_text(tmp_path: Path) -> None:
    cases = quotes.squad_cases(squad(tmp_path))
    assert [[case.text[a:b] for a, b in case.gold] for case in cases] == [["noon"], ["two"], ["sixty years"]]
    assert len({case.text for case in cases}) == 1
    assert all("parrot" not in (case.without or "") for case in cases[1:])
    assert "ferry" not in (cases[0].without or "ferry")


def test_a_run_counts_quotes_that_hold_the_answer_and_goes_on(model: Any, tmp_path: Path) -> None:
    cases = quotes.squad_cases(squad(tmp_path))
    part = run(model, cases[:2], tmp_path / "out.jsonl")
    assert set(part.done) == set(quotes.keys(cases[:2]))
    whole = run(model, cases, tmp_path / "out.jsonl")
    assert set(whole.done) == set(quotes.keys(cases))
    by_words = [row for row in whole.done.values() if row.recipe == "words" and row.task != quotes.WRONG]
    assert [row.scores for row in by_words] == [[1.0]] * 6
    assert all("noon" in json.loads(row.answers[0])[0] for row in by_words if row.case == 0)
    assert quotes.separation(whole.done.values()) == 1.0
    assert quotes.separation(by_words) is None
    elsewhere = [quotes.QuoteCase(cases[0].text, cases[0].question, ((0, 3),), 0)]
    other = [row for row in run(model, elsewhere).done.values() if row.task == quotes.FIRST and row.recipe == "words"]
    assert other[0].scores == [1.0], "another answer in the same sentence"
    nowhere = [quotes.QuoteCase(cases[0].text, cases[0].question, ((26, 45),), 0)]
    assert run(model, nowhere).done[quotes.keys(nowhere)[0]].scores == [0.0]


def test_every_phrasing_asks_for_its_fact_in_other_words(counter: TokenCounter, book: str) -> None:
    for number in range(len(quotes.PHRASINGS)):
        for haystack in (Haystack(counter), Haystack(counter, book)):
            case = quotes.needle_case(CaseRequest("quotes", number, 1024, 0, counter, haystack))
            ((start, end),) = case.gold
            value = case.text[start:end]
            assert value not in case.question
            assert case.question.rstrip("?") not in case.text
            assert case.text.count(value) >= 1


def test_questions_about_a_file(tmp_path: Path) -> None:
    document = Document.of_text("The lamp burns\nall night. The lamp is red.")
    (tmp_path / "q.jsonl").write_text('{"question": "When does it burn?", "answers": ["burns all night"]}\n')
    (case,) = quotes.file_cases(document, datasets.read([str(tmp_path / "q.jsonl")]))
    assert case.gold == ((9, 24),)
    for row in ('{"question": "Who?", "answers": ["nobody"]}', '{"question": "Who?", "answers": []}', '{"q": 1}'):
        (tmp_path / "q.jsonl").write_text(row + "\n")
        with pytest.raises(InputError):
            quotes.file_cases(document, datasets.read([str(tmp_path / "q.jsonl")]))
    with pytest.raises(UsageError):
        quotes.quote_cases(None, datasets.read([str(tmp_path / "q.jsonl")]), [], None, 0)


def test_more_cases_begin_with_the_same_ones(tmp_path: Path) -> None:
    cases = quotes.squad_cases(squad(tmp_path))
    assert quotes.sample(cases, 2, 0) == quotes.sample(cases, None, 0)[:2]
    assert sorted(case.number for case in quotes.sample(cases, None, 5)) == [0, 1, 2]
