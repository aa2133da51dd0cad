"""Fidelity: nothing is lost with full attention or a budget of the whole text; what differs is measured exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcli.errors import UsageError
from kvcli.evaluate.case import Case, CaseQuestion, CaseSpec
from kvcli.evaluate.fidelity import divergence, numbers, run_fidelity, summary, table
from kvcli.evaluate.report import cells
from kvcli.evaluate.results_file import ResultsFile
from kvcli.evaluate.run import Finished
from kvcli.pipeline import Pipeline
from kvcli.recipe import parse
from tests.laws.helpers import drain
from tests.unit.evaluate.test_answer import QUESTIONS, TEXT


def job(number: int, *, text: str = TEXT, gold: tuple[str, ...] = ("green",)) -> CaseSpec:
    asked = tuple(CaseQuestion(q, gold, "contains") for q in QUESTIONS[:2])
    return CaseSpec("fidelity", 900, number, lambda: Case(f"{number}. {text}", asked, max_tokens=4))


def measured(model: Any, recipes: list[str], jobs: list[CaseSpec], path: Path | None = None) -> tuple[ResultsFile, Any]:
    rows, work = ResultsFile(path, {}), [(one, [parse(r) for r in recipes]) for one in jobs]
    return rows, drain(run_fidelity(Pipeline(model, chunk_size=64), work, rows))


def test_a_divergence_by_hand() -> None:
    """A half and a half against a quarter and three quarters: ln 2 - ln 3 / 2; the most probable token differs once."""
    full, other = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), torch.tensor([[0.25, 0.75], [0.1, 0.9]]).log()
    kl, same = divergence(full, other)
    assert kl == pytest.approx((math.log(2) - math.log(3) / 2) / 2, abs=1e-6)
    assert same == 0.5
    assert divergence(full, full) == (0.0, 1.0)


def test_full_attention_loses_nothing_and_less_is_measured(model: Any) -> None:
    recipes = ["full", "keydiff(budget=5000)", "snapkv(budget=5000)", "keydiff(budget=32)", "streaming(budget=16)"]
    rows, skipped = measured(model, recipes, [job(0), job(1)])
    assert skipped == []
    by = {r: [row for row in rows.done.values() if row.recipe.startswith(r)] for r in recipes}
    for row in by["full"]:
        assert row.kl == [0.0, 0.0]
        assert row.scores == [1.0, 1.0]
    for recipe in recipes[1:3]:
        for row, full in zip(by[recipe], by["full"], strict=True):
            assert max(row.kl or []) < 1e-5
            assert row.gold_nll == pytest.approx(full.gold_nll, abs=1e-3)
            assert row.answers == full.answers
    assert all(min(row.kl or []) > 1e-4 for recipe in recipes[3:] for row in by[recipe])
    assert [row.readings for row in (by["keydiff(budget=32)"][0], by["snapkv(budget=5000)"][0])] == [1, 2]
    found = cells(rows.done.values(), [], [("fidelity", str(parse(r)), 900, 0) for r in recipes])
    assert numbers(found[0])["kl"]["mean"] == 0.0
    assert summary(found[3])["kl"].mean > 0
    assert len(table(found)[1]) == len(recipes)


def test_it_goes_on_where_it_ended_and_names_what_does_not_fit(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, _ = measured(model, ["knorm(budget=32)"], [job(0)], path)
    events, rows = [], ResultsFile(path, {})
    work = [(job(0), [parse("knorm(budget=32)"), parse("full")]), (job(1, text=TEXT * 200), [parse("full")])]
    steps = run_fidelity(Pipeline(model, chunk_size=64), work, rows)
    try:
        while True:
            events.append(next(steps))
    except StopIteration as end:
        (skip,) = end.value
    assert skip.key.case == 1
    assert [e.row.recipe for e in events if isinstance(e, Finished)] == ["full"]
    assert rows.done.items() >= first.done.items()


def test_cases_without_a_right_answer_have_no_loss(model: Any) -> None:
    rows, _ = measured(model, ["full"], [job(0, gold=())])
    (cell,) = cells(rows.done.values(), [], [("fidelity", "full", 900, 0)])
    assert "gold_nll" not in numbers(cell)
    assert table([cell])[1][0][5] == "–"


@pytest.mark.parametrize(
    "words", [["fidelity,needle"], ["needle,fidelity"], ["fidelity", "--reread", "3"], ["fidelity", "--query-aware"]]
)
def test_what_it_cannot_do_is_refused_before_a_model_is_loaded(words: list[str]) -> None:
    from kvcli.cli.evaluation import CaseOptions, Evaluation, FidelityEvaluation
    from kvcli.cli.options import ComparisonOptions

    options = CaseOptions(reread="3" if "--reread" in words else "0", query_aware="--query-aware" in words)
    with pytest.raises(UsageError, match="fidelity"):
        (FidelityEvaluation if words[0] == "fidelity" else Evaluation)(
            words[:1], options, ComparisonOptions(), quiet=True
        )
