"""Reading and asking: the same as ``ask`` does, once where one reading is enough, and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.prompt import Prompt
from kvcli.errors import DamagedError, ModelError
from kvcli.evaluate.case import Case, CaseQuestion, CaseReading, CaseSpec
from kvcli.evaluate.results_file import Key, ResultsFile
from kvcli.evaluate.run import Finished, Skipped, answer_case, run, settings
from kvcli.events import Answer, Prefill
from kvcli.pipeline import Pipeline
from kvcli.recipe import parse

TEXT = "The grass is green and the sky is blue. " * 20
QUESTIONS = ["What is green?", "And the sky, what colour is the sky of all these?", "Who?"]


def drain(events: Any) -> tuple[list[Any], Any]:
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=128)", "snapkv(budget=128)"])
def test_answers_are_those_of_single_questions(model: Any, recipe: str) -> None:
    """All questions of one reading are answered as if each had been the only one, by the engine alone."""
    prompt, parsed = Prompt(model.tokenizer), parse(recipe)
    events, (reading,) = drain(answer_case(Pipeline(model, chunk_size=64), parsed, TEXT, QUESTIONS, max_tokens=8))
    ids = prompt.document(TEXT)
    for text, given in zip(QUESTIONS, reading.answers, strict=True):
        question = prompt.question(text)
        _, context = drain(prefill(model, ids, parsed, chunk=64, probe=question))
        asked = list(generate(model, new_decode_cache(model, context), question, max_tokens=8, chunk=64))
        assert isinstance(asked[-1], Answer)
        assert asked[-1].text == given
        assert len(given) == 8
    once = 1 if recipe != "snapkv(budget=128)" else len(QUESTIONS)
    assert reading.readings == once
    assert sum(isinstance(e, Prefill) and e.done == len(ids) for e in events) == once
    assert reading.tokens == len(ids)
    assert reading.kept == (len(ids) if recipe == "full" else 128)


def job(number: int, *, text: str = TEXT, raw: bool = False) -> CaseSpec:
    asked = tuple(CaseQuestion(q, ("zzz",), "contains") for q in QUESTIONS[:2])
    return CaseSpec("task", 900, number, lambda: Case(f"{number}. {text}", asked, max_tokens=4, raw=raw))


def rows(model: Any, path: Path | None = None, **changed: Any) -> ResultsFile:
    given = {"seed": 0, "chunk": 64, "document": None, "data": None, **changed}
    return ResultsFile(path, settings(model, Prompt(model.tokenizer), **given))


def test_a_second_run_goes_on_where_the_first_one_stopped(model: Any, tmp_path: Path) -> None:
    path, recipes = tmp_path / "out.jsonl", [parse("full"), parse("keydiff(budget=128)")]
    work = [(job(n), recipes) for n in range(3)]
    events = run(model, Prompt(model.tokenizer), work, rows(model, path), chunk=64)
    for event in events:
        if isinstance(event, Finished) and event.done == 3:
            break
    events.close()
    found = rows(model, path)
    assert len(found.done) == 3
    rest, skipped = drain(run(model, Prompt(model.tokenizer), work, found, chunk=64))
    assert [event.done for event in rest if isinstance(event, Finished)] == [4, 5, 6]
    assert skipped == []
    whole = rows(model)
    drain(run(model, Prompt(model.tokenizer), work, whole, chunk=64))
    assert {k: r.answers for k, r in whole.done.items()} == {k: r.answers for k, r in found.done.items()}
    nothing, _ = drain(run(model, Prompt(model.tokenizer), work, rows(model, path), chunk=64))
    assert nothing == []


def test_what_does_not_fit_the_window_is_left_out(model: Any) -> None:
    """The tiny model has 4,096 positions: full attention cannot read this, a budget can."""
    work = [(job(0, text=TEXT * 8), [parse("full"), parse("keydiff(budget=128)")])]
    done = rows(model)
    _, (left,) = drain(run(model, Prompt(model.tokenizer), work, done, chunk=64))
    assert isinstance(left, Skipped)
    assert left.key == Key("task", 900, "full", 0, 0)
    assert "4,096" in left.problem.message
    (row,) = done.done.values()
    assert row.tokens > 4096
    assert row.kept == 128
    assert row.scores == [0.0, 0.0]


@pytest.mark.parametrize("focus", [False, True])
def test_several_looks_from_one_reading_answer_as_each_alone(
    model: Any, focus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, recipe = Pipeline(model, chunk_size=64), parse("keydiff(budget=128)")
    text = "".join(f"House {n} is blue and the sky is {n}. " for n in range(60))

    asked: list[list[int]] = []
    ask = generate

    def spy(model: Any, tail: Any, ids: Any, **rest: Any) -> Any:
        asked.append(list(ids))
        return ask(model, tail, ids, **rest)

    def read(*counts: int) -> Any:
        options = CaseReading(focus, counts)
        return drain(answer_case(pipeline, recipe, text, QUESTIONS, max_tokens=8, options=options))[1]

    monkeypatch.setattr("kvcli.pipeline.pipeline.generate", spy)
    both = read(0, 2)
    together = [asked[0::2], asked[1::2]]
    assert all(len(plain) < len(again) for plain, again in zip(*together, strict=True))
    asked.clear()
    assert [found.look for found in both] == [0, 2]
    assert [found.answers for found in both] == [read(0)[0].answers, read(2)[0].answers]
    assert asked == together[0] + together[1]
    assert both[0].readings == both[1].readings == (len(QUESTIONS) if focus else 1)


def test_a_run_adds_the_look_that_is_missing(model: Any) -> None:
    done, work = rows(model), [(job(0), [parse("keydiff(budget=128)")])]
    for counts, fresh in [((0,), [0]), ((0, 1), [1]), ((1, 0), [])]:
        events, _ = drain(
            run(model, Prompt(model.tokenizer), work, done, chunk=64, read_options=CaseReading(rereads=counts))
        )
        assert [event.row.look for event in events if isinstance(event, Finished)] == fresh


def test_passages_that_do_not_fit_leave_the_plain_answer(model: Any) -> None:
    """8 passages and 3,900 tokens are more than the tiny model's 4,096 positions."""
    work, done = [(job(0, text="The grass is green. " * 170), [parse("full")])], rows(model)
    _, (left,) = drain(
        run(model, Prompt(model.tokenizer), work, done, chunk=64, read_options=CaseReading(rereads=(0, 8)))
    )
    assert left.key.look == 8
    assert [key.look for key in done.done] == [0]


def test_bare_cases_get_no_words_around_them(model: Any) -> None:
    done = rows(model)
    drain(run(model, Prompt(model.tokenizer), [(job(0, raw=True), [parse("full")])], done, chunk=64))
    (row,) = done.done.values()
    assert row.tokens == len(Prompt(model.tokenizer, raw=True).document(f"0. {TEXT}"))


def test_missing_heads_are_said_before_anything_is_read(model: Any) -> None:
    work = [(job(0), [parse("full"), parse("locret(budget=128)")])]
    done = rows(model)
    with pytest.raises(ModelError, match="retaining heads"):
        next(run(model, Prompt(model.tokenizer), work, done, chunk=64))
    assert not done.done


def test_rows_of_other_heads_are_refused(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvcli.retaining_heads.module import RetainingHeads

    work = [(job(0), [parse("locret(budget=128)")])]
    path = tmp_path / "out.jsonl"
    for seed in (1, 2):
        heads = RetainingHeads.like(model.spec, width=8, seed=seed).to(model.device, model.dtype)
        monkeypatch.setattr(model, "heads", heads)
        if seed == 1:
            drain(run(model, Prompt(model.tokenizer), work, rows(model, path), chunk=64))
            drain(run(model, Prompt(model.tokenizer), work, rows(model, path), chunk=64))
    with pytest.raises(DamagedError, match="other heads"):
        drain(run(model, Prompt(model.tokenizer), work, rows(model, path), chunk=64))


def test_another_seed_needs_another_file(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    drain(run(model, Prompt(model.tokenizer), [(job(0), [parse("full")])], rows(model, path), chunk=64))
    with pytest.raises(DamagedError, match="another chunk-size: 64 there, 32 here"):
        rows(model, path, chunk=32)
