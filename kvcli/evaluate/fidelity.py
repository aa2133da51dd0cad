"""Fidelity: how close a recipe's token probabilities are to those of full attention, along the same answer.

Full attention answers each question; every recipe is then forced along that answer. So few cases tell recipes apart
that give the same answers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.engine.generate import new_decode_cache
from kvcli.errors import ResourceError, TooLongError
from kvcli.evaluate.case import Case, CaseSpec
from kvcli.evaluate.intervals import Estimate, estimate
from kvcli.evaluate.report import Cell, name
from kvcli.evaluate.results_file import Key, Result, ResultsFile
from kvcli.evaluate.run import Finished, Skipped, check_heads, digest
from kvcli.events import Answer, Prefill, Token, only_prefill
from kvcli.pipeline import DocumentContext, Pipeline, TokenizedDocument
from kvcli.recipe import Recipe, parse


@dataclass(frozen=True)
class Reference:
    """Full attention's answer to one question, and its token probabilities.

    Attributes:
        question, answer, gold: token ids; the answer is the model's own, ``gold`` the right one.
        text: the answer.
        log_probs: float32 ``[answer + 1, vocab]``, before each token of the answer and after it.
    """

    question: list[int]
    answer: list[int]
    gold: list[int]
    text: str
    log_probs: Tensor


@torch.inference_mode()
def log_probs(pipeline: Pipeline, context: Context | None, question: Sequence[int], forced: Sequence[int]) -> Tensor:
    """Return the model's predictions before each forced token and after the last: float32 ``[forced + 1, vocab]``."""
    model, ids = pipeline.model, [*question, *forced]
    cache = new_decode_cache(model, context)
    keep = torch.arange(len(question) - 1, len(ids), device=model.device)
    logits = model.forward(torch.tensor(ids, device=model.device), cache, logits=keep)
    assert logits is not None
    return logits.float().log_softmax(dim=-1)


def divergence(full: Tensor, other: Tensor) -> tuple[float, float]:
    """Compare log-probabilities ``[n, vocab]``: the mean of ``KL(full ‖ other)`` in nats, the share of equal maxima."""
    kl = (full.exp() * (full - other)).sum(dim=-1).clamp_min(0).mean()
    return float(kl), float((full.argmax(dim=-1) == other.argmax(dim=-1)).float().mean())


def _contexts(
    pipeline: Pipeline, source: TokenizedDocument, recipe: Recipe, case: Case
) -> Generator[Prefill, None, list[DocumentContext]]:
    """Read a text once, or once per question if the policy is query-aware; refuses before anything is read."""
    longest = max((pipeline.prompt.question(question.text) for question in case.questions), key=len)
    pipeline.plan(source, recipe, question=longest, max_tokens=case.max_tokens)
    read: list[DocumentContext] = []
    for question in case.questions:
        if read and not recipe.policy.query_aware:
            read.append(read[0])
            continue
        events = pipeline.prefill_events(source, recipe=recipe, question=question.text, max_tokens=case.max_tokens)
        read.append((yield from only_prefill(events)))
    return read


def _references(pipeline: Pipeline, source: TokenizedDocument, case: Case) -> Generator[Prefill, None, list[Reference]]:
    """Answer all questions of a case with full attention."""
    contexts = yield from _contexts(pipeline, source, parse("full"), case)
    found = []
    for question, context in zip(case.questions, contexts, strict=True):
        ids, said, text = pipeline.prompt.question(question.text), list[int](), ""
        for event in pipeline.ask(context, ids, max_tokens=case.max_tokens, allow_repetition=True):
            if isinstance(event, Token) and event.id >= 0:
                said.append(event.id)
            elif isinstance(event, Answer):
                text = event.text
        gold = pipeline.model.tokenizer((*question.gold, "")[0], add_special_tokens=False)["input_ids"]
        found.append(Reference(ids, said, gold, text, log_probs(pipeline, context.context, ids, said)))
    return found


def _measure(
    pipeline: Pipeline, source: TokenizedDocument, job: CaseSpec, case: Case, recipe: Recipe, wanted: list[Reference]
) -> Generator[Prefill, None, Result]:
    began = perf_counter()
    contexts = yield from _contexts(pipeline, source, recipe, case)
    read_s, began = perf_counter() - began, perf_counter()
    kl, same, nll = list[float](), list[float](), list[float]()
    for context, full in zip(contexts, wanted, strict=True):
        along = divergence(full.log_probs, log_probs(pipeline, context.context, full.question, full.answer))
        kl.append(round(along[0], 6))
        same.append(round(along[1], 6))
        if full.gold:
            gold = log_probs(pipeline, context.context, full.question, full.gold)[: len(full.gold)]
            right = torch.tensor(full.gold, device=gold.device)[:, None]
            nll.append(round(-float(gold.gather(1, right).mean()), 6))
    kept = contexts[0].context
    assert kept is not None
    return Result(
        task=job.task,
        length=job.length,
        recipe=str(recipe),
        case=job.number,
        budget=recipe.policy.budget,
        tokens=len(source.ids),
        kept=kept.kept,
        readings=len(contexts) if recipe.policy.query_aware else 1,
        scores=same,
        metrics=["same_token"],
        answers=[full.text for full in wanted],
        gold=[list(question.gold) for question in case.questions],
        tags=dict(case.tags),
        read_s=round(read_s, 3),
        answer_s=round(perf_counter() - began, 3),
        heads=digest(pipeline.model) if recipe.policy.needs_heads else None,
        bits=kept.bits,
        device_bytes=kept.nbytes,
        host_bytes=kept.host_nbytes,
        kl=kl,
        gold_nll=nll,
    )


def run_fidelity(
    pipeline: Pipeline, work: Sequence[tuple[CaseSpec, Sequence[Recipe]]], rows: ResultsFile
) -> Generator[Prefill | Finished, None, list[Skipped]]:
    """Measure the cases that have no result yet.

    Args:
        pipeline: saves nothing.
        work: cases, and the recipes for each of them.
        rows: earlier results; new ones are added.

    Yields:
        prefill progress, and a :class:`Finished` after each case and recipe.

    Returns:
        the cases that do not fit the model's window or the machine.

    Raises:
        DamagedError: ``rows`` come from other heads.
        ModelError: a recipe needs heads and the model has none.
    """
    wanted = {_key(job, recipe): recipe for job, recipes in work for recipe in recipes}
    check_heads(pipeline.model, rows, wanted)
    total, done = len(wanted), sum(key in rows.done for key in wanted)
    skipped: list[Skipped] = []
    for job, recipes in work:
        missing = [recipe for recipe in recipes if _key(job, recipe) not in rows.done]
        if not missing:
            continue
        case = job.make()
        asking = Pipeline(pipeline.model, chunk_size=pipeline.chunk_size, raw=True) if case.raw else pipeline
        source = asking.tokenize(case.text)
        try:
            full = yield from _references(asking, source, case)
        except (TooLongError, ResourceError) as problem:
            skipped += [Skipped(_key(job, recipe), problem) for recipe in missing]
            total -= len(missing)
            continue
        for recipe in missing:
            try:
                row = yield from _measure(asking, source, job, case, recipe, full)
            except (TooLongError, ResourceError) as problem:
                skipped.append(Skipped(_key(job, recipe), problem))
                total -= 1
                continue
            rows.add(row)
            done += 1
            yield Finished(row, done, total)
    return skipped


def _key(job: CaseSpec, recipe: Recipe) -> Key:
    return Key(job.task, job.length, str(recipe), 0, job.number)


def summary(cell: Cell) -> dict[str, Estimate]:
    """The mean KL per token in nats, the share of equal top tokens and the loss per token of the right answer."""
    values = {"kl": [r.kl or [] for r in cell.rows], "same": [r.scores for r in cell.rows]}
    values["gold_nll"] = [r.gold_nll or [] for r in cell.rows]
    return {key: estimate(cases, shares=key == "same") for key, cases in values.items() if any(cases)}


def numbers(cell: Cell) -> dict[str, Any]:
    """Fields of a cell's JSON that other tasks do not have."""
    found = summary(cell)
    return {
        key: {"mean": round(e.mean, 6), "low": e.low and round(e.low, 6), "high": e.high and round(e.high, 6)}
        for key, e in found.items()
        if key != "same"
    }


def table(found: Sequence[Cell]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return headings, rows and footnotes: one row per recipe and length."""
    body = []
    for cell in found:
        if cell.rows:
            e = summary(cell)
            units = f"{max(row.kept for row in cell.rows):,}"
            shown = [_text(e.get("kl"), 1, 4), _text(e.get("same"), 100, 1), _text(e.get("gold_nll"), 1, 3)]
            shown.append(str(len(cell.rows)))
            body.append([cell.recipe, name(cell.length), units, *shown])
    notes = [f"{c.recipe} · {name(c.length)}: {len(c.reasons)} skipped: {c.reasons[0]}" for c in found if c.reasons]
    return ["recipe", "length", "kept", "KL, nats", "same token, %", "gold loss, nats", "cases"], body, notes


def _text(found: Estimate | None, factor: float, digits: int) -> str:
    if found is None:
        return "–"
    mean, low, high = (f"{factor * (x or 0):.{digits}f}" for x in (found.mean, found.low, found.high))
    return mean if found.low is None else f"{mean} [{low}–{high}]"
