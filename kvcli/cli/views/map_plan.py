"""``kvcli map --plan``: tokens, time, memory and disk of a run over many documents; loads no weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kvcli import documents
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.plan import NO_PREFILL
from kvcli.cli.views.progress import ProgressDisplay
from kvcli.errors import KvcliError
from kvcli.events import Mapped
from kvcli.models.defaults import default_chunk
from kvcli.planning import memory
from kvcli.planning.disk import disk_bytes
from kvcli.planning.estimate import Target
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.corpus.task import DocumentTask
    from kvcli.models.weights import ModelSource
    from kvcli.planning.speed_history import Rates
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec

    Workers = Callable[[ModelSpec, Recipe], list[tuple[str, int, Rates]]]

ANSWER = 64
"""Tokens that an answer is assumed to have, if ``--max-tokens`` allows them."""


def show(tasks: Sequence[DocumentTask], own: RunOptions, source: ModelSource, workers: Workers) -> None:
    """Print what a run takes: extracts and counts every document.

    Args:
        tasks: the documents and the questions that are left.
        own: the options of the run.
        source: the model's files.
        workers: of a model and a recipe, the machines that answer: name, number of workers, measured speeds.
    """
    from kvcli import recipe as recipes
    from kvcli.engine.prompt import Prompt
    from kvcli.models import spec as model_spec
    from kvcli.models.heads_on_disk import heads_bytes
    from kvcli.models.tokenizer import FileTokenizer

    spec = model_spec.spec(source, device=own.device, dtype=own.dtype, stored=own.weights)
    spec = replace(spec, heads_bytes=heads_bytes(source, spec))
    prompt = Prompt(FileTokenizer(source.path), system=own.system, raw=own.raw)
    counts, disk, bad = list[int](), 0, 0
    size, done, began = sum(task.size for task in tasks), 0, time.monotonic()
    units = None if own.budget is None else own.budget.units(spec, 1 << 20)
    alone = bool(tasks) and tasks[0].alone
    recipe = recipes.choose(
        spec,
        None if own.policy is None else recipes.parse(own.policy),
        questions=1 if alone else 0,
        budget=units,
        bits=own.kv_bits,
        heads=bool(spec.heads_bytes),
    )
    chunk = own.chunk or default_chunk(spec)
    with ProgressDisplay(quiet=own.quiet) as display:
        for n, task in enumerate(tasks, 1):
            try:
                text = documents.read([task.name], None, own.reading).text
                counts.append(len(prompt.document(text)))
                disk += disk_bytes(
                    spec, recipe, tokens=counts[-1], chunk=chunk, text=len(text.encode(errors="replace"))
                )
            except KvcliError as error:
                bad += 1
                terminal.error(error)
            done += task.size
            share = done / size if size else 1.0
            display.see(Mapped(n, len(tasks), bad, sum(counts), time.monotonic() - began, share))
    tokens, questions = sum(counts), sum(len(task.questions) for task in tasks)
    with interruptible("asking the workers for their speed"):
        machines = workers(spec, recipe)
    rows = [
        ("corpus", f"{terminal.plural(len(counts), 'document')} · {questions:,} answers · {bad:,} cannot be read"),
        ("tokens", f"{tokens:,} · longest document {max(counts, default=0):,}"),
        ("model", f"{spec.name} {spec.dtype} · {spec.device} · {recipe}"),
        ("time", _time(tokens, questions, min(ANSWER, own.max_tokens), machines)),
        ("disk", f"at most {format_bytes(disk)} of saved prefills" if own.cache else "no saved prefills"),
    ]
    if counts and own.skips_prefill(spec, recipe, max(counts), [q.text for task in tasks for q in task.questions]):
        rows.append(("questions", NO_PREFILL))
    if counts:
        try:
            plan, _ = memory.plan_run(
                spec, recipe, tokens=max(counts), chunk=chunk, question=256, answer=own.max_tokens
            )
            target = Target.this(spec.device)
            fits = "fits" if plan.total <= target.usable else "does not fit"
            size_ = f"{format_bytes(plan.total)} per worker at the longest document"
            rows.append(("memory", f"{size_}: {fits}; {target.name} has {format_bytes(target.usable)}"))
        except KvcliError as error:
            rows.append(("memory", error.message))
    terminal.facts(rows)


def _time(tokens: int, answers: int, length: int, machines: Sequence[tuple[str, int, Rates]]) -> str:
    """How long the workers take if each gets documents as fast as it answers."""
    per_second, speeds = 0.0, []  # parts of the whole run
    for name, count, rates in machines:
        if not rates.prefill or not rates.decode:
            speeds.append(f"{name}: not measured and not counted")
            continue
        per_second += count / ((tokens / rates.prefill + answers * length / rates.decode) or 1.0)
        speed = f"prefill {rates.prefill:,.0f} tok/s, answers {rates.decode:,.1f} tok/s"
        speeds.append(f"{name}: {terminal.plural(count, 'worker')} at the measured {speed}")
    if not per_second:
        return f"unknown: no earlier run with this model and recipe on {', '.join(name for name, _, _ in machines)}"
    return f"about {terminal.duration(1 / per_second)} with answers of {length} tokens · {' · '.join(speeds)}"
