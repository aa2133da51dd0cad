"""Going through cases: each text is made once and read under every recipe; rows are kept as they are finished."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kvcli.engine.prefill import new_prefill_cache
from kvcli.engine.prompt import Prompt
from kvcli.errors import DamagedError, ResourceError, TooLongError
from kvcli.evaluate.answer import Reading, answer
from kvcli.evaluate.case import PLAIN, Case, CaseSpec, ReadOptions
from kvcli.evaluate.metrics import score
from kvcli.evaluate.results_file import Key, Result, ResultsFile
from kvcli.events import Prefill
from kvcli.models.model import Model
from kvcli.recipe import Recipe


@dataclass(frozen=True)
class Finished:
    """A case is done under one recipe with one look; ``done`` of ``total`` are, those of earlier runs included."""

    row: Result
    done: int
    total: int


@dataclass(frozen=True)
class Skipped:
    """A case was left out, because it does not fit: why."""

    key: Key
    problem: TooLongError | ResourceError


def run(
    model: Model,
    prompt: Prompt,
    work: Sequence[tuple[CaseSpec, Sequence[Recipe]]],
    rows: ResultsFile,
    *,
    chunk: int,
    manner: ReadOptions = PLAIN,
) -> Generator[Prefill | Finished, None, list[Skipped]]:
    """Measure what is not measured yet.

    Args:
        model: with heads where a recipe needs them.
        prompt: as ``ask`` speaks to the model; cases that are ``raw`` get one without words.
        work: cases, and the recipes to read each of them with.
        rows: what is done; finished rows are added to it.
        chunk: tokens per forward pass.
        manner: focus and second looks, the same for all.

    Yields:
        progress of each reading, and a :class:`Finished` after each case and recipe.

    Returns:
        what does not fit the model or the machine.

    Raises:
        DamagedError: rows of ``rows`` were made with other heads.
        ModelError: a recipe needs heads and the model has none.
    """
    for recipe in {recipe for _, recipes in work for recipe in recipes if recipe.policy.needs_heads}:
        new_prefill_cache(
            model, recipe, 1
        )  # refuses at once where heads are missing, and not after hours of other recipes
    heads = digest(model) if any(recipe.policy.needs_heads for _, recipes in work for recipe in recipes) else None
    wanted = {key: recipe for job, recipes in work for recipe in recipes for key in keys(job, recipe, manner)}
    _same_heads(rows, wanted, heads)
    total, done = len(wanted), sum(key in rows.done for key in wanted)
    skipped: list[Skipped] = []
    bare = Prompt(model.tokenizer, raw=True)
    for job, recipes in work:
        missing = {r: [key.look for key in keys(job, r, manner) if key not in rows.done] for r in recipes}
        case = job.make() if any(missing.values()) else None
        for recipe, looks in missing.items():
            while looks:
                assert case is not None
                try:
                    readings = yield from answer(
                        model,
                        bare if case.raw else prompt,
                        recipe,
                        case.text,
                        [question.text for question in case.questions],
                        chunk=chunk,
                        max_tokens=case.max_tokens,
                        manner=replace(manner, looks=tuple(looks)),
                    )
                except (TooLongError, ResourceError) as problem:  # before anything was read; fewer passages may fit
                    most = max(looks)
                    looks.remove(most)
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


def keys(job: CaseSpec, recipe: Recipe, manner: ReadOptions) -> list[Key]:
    """The rows that a case makes under a recipe."""
    return [Key(job.task, job.length, str(recipe), look, job.number) for look in manner.looks]


def digest(model: Model) -> str | None:
    """A short hash of the model's retaining heads, if it has any."""
    weights = getattr(model.heads, "state_dict", None)
    if weights is None:
        return None
    found = hashlib.sha256()
    for name, tensor in sorted(weights().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _same_heads(rows: ResultsFile, wanted: Mapping[Key, Recipe], heads: str | None) -> None:
    for key, recipe in wanted.items():
        row = rows.done.get(key)
        if row is not None and recipe.policy.needs_heads and row.heads != heads:
            raise DamagedError(
                f"{rows.path} was made with other heads: {row.heads} there, {heads} here", "another name for --out"
            )


def _row(job: CaseSpec, case: Case, recipe: Recipe, reading: Reading, heads: str | None) -> Result:
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
    """The metrics' names, each once."""
    return list(dict.fromkeys(metrics))


def settings(
    model: Model,
    prompt: Prompt,
    *,
    seed: int,
    chunk: int,
    document: str | None,
    data: str | None,
    manner: ReadOptions = PLAIN,
) -> dict[str, str | int | None]:
    """What rows of one file must have in common, beside what each of them names itself.

    Args:
        model: whose name, weights, dtype and kind of device count.
        prompt: whose words count.
        seed: of the cases.
        chunk: tokens per forward pass.
        document, data: digests of what was read.
        manner: how it was read.
    """
    words = hashlib.sha256(repr((prompt.document("text"), prompt.question("question"))).encode()).hexdigest()[:16]
    return {
        "model": model.spec.name,
        "fingerprint": model.spec.fingerprint,
        "dtype": model.spec.dtype,
        "device": model.device.type,
        "seed": seed,
        "chunk-size": chunk,
        "focus": int(manner.focus),
        "document": document,
        "data": data,
        "prompt": words,
    }
