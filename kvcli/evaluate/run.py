"""Run of an evaluation: each text is built once and read under every recipe; finished rows are saved at once."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from kvcli.engine.prefill import new_prefill_cache
from kvcli.engine.prompt import Prompt
from kvcli.errors import DamagedError, ResourceError, TooLongError
from kvcli.evaluate.case import PLAIN, Case, CaseReading, CaseSpec
from kvcli.evaluate.metrics import score
from kvcli.evaluate.results_file import Key, Result, ResultsFile
from kvcli.events import Answer, Prefill, only_prefill
from kvcli.models.model import Model
from kvcli.pipeline import DocumentContext, Pipeline
from kvcli.recipe import Recipe


@dataclass(frozen=True)
class Finished:
    """Progress after a case under one recipe; ``done`` of ``total``, earlier runs included."""

    row: Result
    done: int
    total: int


@dataclass(frozen=True)
class Skipped:
    """A case that does not fit, with the reason."""

    key: Key
    problem: TooLongError | ResourceError


@dataclass(frozen=True)
class CaseAnswers:
    """The answers of one case with one number of re-read passages.

    Attributes:
        look: the number of re-read passages.
        answers: one per question, in order.
        tokens: of the text and the words before it.
        kept: units per KV head of the layer that keeps most.
        bits: effective bits of a kept number, scales included.
        device_bytes, host_bytes: of the kept units, index and staging included.
        readings: number of prefills of the text.
        read_s: seconds of prefill, in total.
        answer_s: seconds of answering, in total.
    """

    look: int
    answers: tuple[str, ...]
    tokens: int
    kept: int
    bits: float
    device_bytes: int
    host_bytes: int
    readings: int
    read_s: float
    answer_s: float


def answer_case(
    pipeline: Pipeline,
    recipe: Recipe,
    text: str,
    questions: Sequence[str],
    *,
    max_tokens: int = 32,
    options: CaseReading = PLAIN,
) -> Generator[Prefill, None, list[CaseAnswers]]:
    """Read a text and answer questions about it, greedily.

    A query-aware policy or query-aware prefill reads the text once per question; otherwise once.

    Args:
        pipeline: the model, its prompt and the chunk size; saves nothing.
        recipe: eviction policy and storage.
        text: the document.
        questions: at least one.
        max_tokens: maximum answer length; less if the model's positions end before.
        options: query-aware prefill, re-read passages; a raw prompt has neither.

    Yields:
        a :class:`Prefill` after each chunk.

    Returns:
        one result for each of ``options.rereads``.

    Raises:
        TooLongError: text and question do not fit the model's window under this recipe.
        ResourceError: they do not fit the machine's memory.
    """
    raw = pipeline.prompt.raw
    aware, most = options.query_aware and not raw, 0 if raw else max(options.rereads)
    source = pipeline.tokenize(text)
    longest_question = max((pipeline.prompt.question(question) for question in questions), key=len)
    _, longest = pipeline.plan(
        source, recipe, question=longest_question, max_tokens=max_tokens, passages=most
    )  # refuses before anything is read
    answers: dict[int, list[str]] = {count: [] for count in options.rereads}
    answer_s = dict.fromkeys(options.rereads, 0.0)
    context: DocumentContext | None = None
    readings, read_s = 0, 0.0
    for question in questions:
        began = perf_counter()
        if context is None or recipe.policy.query_aware or aware:
            context = None  # free its memory before the next one is made
            reading = pipeline.prefill_events(
                source, recipe=recipe, question=question, query_aware=aware, max_tokens=longest, passages=most
            )
            context = yield from only_prefill(reading)
            readings += 1
        read_s += perf_counter() - began
        for count in options.rereads:
            began = perf_counter()
            for event in pipeline.ask(
                context, question, max_tokens=longest, passages=0 if raw else count, allow_repetition=True
            ):
                if isinstance(event, Answer):
                    answers[count].append(event.text)
            answer_s[count] += perf_counter() - began
    assert context is not None
    kv = context.context
    assert kv is not None
    return [
        CaseAnswers(
            count,
            tuple(answers[count]),
            context.tokens,
            kv.kept,
            kv.bits,
            kv.nbytes,
            kv.host_nbytes,
            readings,
            read_s,
            answer_s[count],
        )
        for count in options.rereads
    ]


def run(
    model: Model,
    prompt: Prompt,
    work: Sequence[tuple[CaseSpec, Sequence[Recipe]]],
    rows: ResultsFile,
    *,
    chunk: int,
    read_options: CaseReading = PLAIN,
) -> Generator[Prefill | Finished, None, list[Skipped]]:
    """Measure the cases that have no result yet.

    Args:
        model: with heads if a recipe needs them.
        prompt: the prompt format of ``ask``; ``raw`` cases use none.
        work: cases, and the recipes for each of them.
        rows: earlier results; new ones are added.
        chunk: tokens per forward pass.
        read_options: query-aware prefill and re-read passages, the same for all.

    Yields:
        prefill progress, and a :class:`Finished` after each case and recipe.

    Returns:
        the cases that do not fit the model or the machine.

    Raises:
        DamagedError: ``rows`` come from other heads.
        ModelError: a recipe needs heads and the model has none.
    """
    wanted = {key: recipe for job, recipes in work for recipe in recipes for key in keys(job, recipe, read_options)}
    heads = check_heads(model, rows, wanted)
    total, done = len(wanted), sum(key in rows.done for key in wanted)
    skipped: list[Skipped] = []
    spoken = Pipeline(model, chunk_size=chunk, system=prompt.system, raw=prompt.raw)
    bare = Pipeline(model, chunk_size=chunk, raw=True)
    for job, recipes in work:
        missing = {r: [key.look for key in keys(job, r, read_options) if key not in rows.done] for r in recipes}
        case = job.make() if any(missing.values()) else None
        for recipe, counts in missing.items():
            while counts:
                assert case is not None
                try:
                    readings = yield from answer_case(
                        bare if case.raw else spoken,
                        recipe,
                        case.text,
                        [question.text for question in case.questions],
                        max_tokens=case.max_tokens,
                        options=replace(read_options, rereads=tuple(counts)),
                    )
                except (TooLongError, ResourceError) as problem:  # raised before prefill; fewer passages may fit
                    most = max(counts)
                    counts.remove(most)
                    skipped.append(Skipped(Key(job.task, job.length, str(recipe), most, job.number), problem))
                    total -= 1
                    continue
                for reading in readings:
                    row = _row(job, case, recipe, reading, heads if recipe.policy.needs_heads else None)
                    rows.add(row)
                    done += 1
                    yield Finished(row, done, total)
                break
    return skipped


def keys(job: CaseSpec, recipe: Recipe, read_options: CaseReading) -> list[Key]:
    """Return the keys of a case's results under a recipe."""
    return [Key(job.task, job.length, str(recipe), count, job.number) for count in read_options.rereads]


def digest(model: Model) -> str | None:
    """Return a short hash of the model's retaining heads, if any."""
    weights = getattr(model.heads, "state_dict", None)
    if weights is None:
        return None
    found = hashlib.sha256()
    for name, tensor in sorted(weights().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def check_heads(model: Model, rows: ResultsFile, wanted: Mapping[Key, Recipe]) -> str | None:
    """Check the retaining heads before anything is read; returns their digest if a recipe needs them.

    Raises:
        DamagedError: ``rows`` come from other heads.
        ModelError: a recipe needs heads, or its storage a calibration, and the model has none.
    """
    needs = {recipe for recipe in wanted.values() if recipe.policy.needs_heads}
    for recipe in needs:
        new_prefill_cache(model, recipe, 1)  # missing heads fail now, not after hours of other recipes
    heads = digest(model) if needs else None
    for key, recipe in wanted.items():
        row = rows.done.get(key)
        if row is not None and recipe.policy.needs_heads and row.heads != heads:
            raise DamagedError(
                f"{rows.path} was made with other heads: {row.heads} there, {heads} here", "another name for --out"
            )
    return heads


def _row(job: CaseSpec, case: Case, recipe: Recipe, reading: CaseAnswers, heads: str | None) -> Result:
    return Result(
        task=job.task,
        length=job.length,
        recipe=str(recipe),
        case=job.number,
        budget=recipe.policy.budget,
        tokens=reading.tokens,
        kept=reading.kept,
        readings=reading.readings,
        scores=[round(score(a, q), 6) for a, q in zip(reading.answers, case.questions, strict=True)],
        metrics=_names(question.metric for question in case.questions),
        answers=list(reading.answers),
        gold=[list(question.gold) for question in case.questions],
        tags=dict(case.tags),
        read_s=round(reading.read_s, 3),
        answer_s=round(reading.answer_s, 3),
        heads=heads,
        bits=reading.bits,
        device_bytes=reading.device_bytes,
        host_bytes=reading.host_bytes,
        look=reading.look,
    )


def _names(metrics: Iterable[str]) -> list[str]:
    """Return the metrics' distinct names."""
    return list(dict.fromkeys(metrics))


def settings(
    model: Model,
    prompt: Prompt,
    *,
    seed: int,
    chunk: int,
    document: str | None,
    data: str | None,
    read_options: CaseReading = PLAIN,
) -> dict[str, str | int | None]:
    """Return the settings that rows of one file must share.

    Args:
        model: its name, weights, dtype and device type count.
        prompt: its words count.
        seed: of the cases.
        chunk: tokens per forward pass.
        document, data: digests of the inputs.
        read_options: the read options.
    """
    words = hashlib.sha256(repr((prompt.document("text"), prompt.question("question"))).encode()).hexdigest()[:16]
    return {
        "model": model.spec.name,
        "fingerprint": model.spec.fingerprint,
        "dtype": model.spec.dtype,
        "device": model.device.type,
        "seed": seed,
        "chunk-size": chunk,
        "focus": int(read_options.query_aware),
        "document": document,
        "data": data,
        "prompt": words,
    }
