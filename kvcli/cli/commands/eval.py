"""``kvcli eval TASK [FILE…]``: how much of what it reads a model still knows, by recipe, budget and length."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from kvcli import documents
from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.options import DEBUG, DEVICE, DTYPE, KV_BITS, MODEL, OFFLINE, QUIET, WEIGHTS
from kvcli.cli.report import versions
from kvcli.cli.signals import INTERRUPTS, Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import ProgressDisplay, run_with_progress
from kvcli.documents import STDIN, Document
from kvcli.errors import UsageError
from kvcli.evaluate import build_cases, report, tasks
from kvcli.evaluate import datasets as data_files
from kvcli.evaluate.case import ReadOptions
from kvcli.evaluate.results_file import ResultsFile
from kvcli.events import Prefill
from kvcli.planning.budget import Budget

if TYPE_CHECKING:
    from kvcli.engine.prompt import Prompt
    from kvcli.evaluate.case import CaseSpec
    from kvcli.evaluate.run import Finished, Skipped
    from kvcli.models.model import Model
    from kvcli.recipe import Recipe

DEFAULT_LENGTH = 4096


class Eval(TyperCommand):
    """``eval`` with a usage line that tells the task from the files."""

    def collect_usage_pieces(self, _ctx: Any) -> list[str]:
        return ["[OPTIONS]", "TASK[,TASK]...", "[FILE]..."]


def command(
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    model: MODEL = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="RECIPE", help="What to keep: kvcli recipes. Repeatable: side by side."),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="N|P%|SIZE", help="Units to keep: 16384, 12% or 2GiB. Repeatable."),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths", metavar="N,…", help="Tokens to read: 4K,8K,1M. By default all of FILE, or 4K without one."
        ),
    ] = None,
    cases: Annotated[
        int | None,
        typer.Option(
            "--cases", metavar="N", min=1, help="Cases of each cell: 10 by default, of benchmark files all there are."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another seed makes other cases.")] = 0,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH", help="A benchmark file or a folder of them, repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Keep finished cases there, and go on from those that are there."),
    ] = None,
    kv_bits: KV_BITS = None,
    heads: Annotated[
        str | None,
        typer.Option("--heads", metavar="NAME", help="Retaining heads for locret: a file or a hub repository."),
    ] = None,
    query_aware: Annotated[
        bool, typer.Option("--query-aware", help="Read for each question alone: put it before the text too.")
    ] = False,
    again: Annotated[
        str,
        typer.Option(
            "--reread",
            metavar="N,…",
            help="Passages looked at a second time before answers, ask takes 3; 0,3 compares, from one reading.",
        ),
    ] = "0",
    chunk: Annotated[int, typer.Option("--chunk-size", metavar="N", min=1, help="Tokens read per step.")] = 512,
    device: DEVICE = None,
    dtype: DTYPE = None,
    weights: WEIGHTS = "bf16",
    offline: OFFLINE = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and no table.")] = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Measure what a reading keeps: tasks with known answers, for each recipe, budget and length.

    Facts are hidden in FILE, your own document, or in noise. Prints a table of means in per cent with 95 %
    intervals, and JSON as the last line. Several tasks are joined with commas.

    \b
    needle      one invented fact: a number, a name or a word
    multikey    four facts of one kind, one of them asked for
    multivalue  four values of one thing, all asked for at once
    multiquery  eight facts, each asked for after one reading
    passkey     a five-digit pass key
    number      a ten-digit number
    kv          the value of a key among random JSON pairs
    variables   all variables of a chain of assignments
    common      the ten most common words of a list
    frequent    the three most frequent words of a coded text
    multidoc    a question on one of many passages (--data)
    gold        the same questions, given the right passage alone
    data        benchmark files: L-Eval, LongBench, InfiniteBench, SQuAD
    """
    run = _Run(
        words or [],
        policies or [],
        [Budget.parse(text) for text in budgets or []],
        build_cases.lengths(lengths) if lengths is not None else None,
        data or [],
        quiet=quiet,
        manner=ReadOptions(query_aware, build_cases.looks(again)),
        kv_bits=kv_bits,
    )
    run.load(model, heads, device=device, dtype=dtype, weights=weights, offline=offline)
    run.prepare(cases, seed, chunk, out)
    skipped = run.measure(chunk)
    found = run.cells(skipped)
    if not any(cell.rows for cell in found):
        raise skipped[0].problem
    if not as_json:
        columns, body, notes = report.table(found)
        terminal.table(columns, body)
        for text in notes:
            terminal.write(sys.stdout, terminal.oneline(text))
    print(
        json.dumps(
            {
                "schema": SCHEMA,
                "settings": run.rows.settings,
                "cells": [cell.numbers() for cell in found],
                "out": None if out is None else str(out),
                "versions": versions(),
            },
            ensure_ascii=False,
        ),
        flush=True,
    )


class _Run:
    """What is measured; everything that can be wrong with the words is refused before a model is loaded."""

    model: "Model"
    prompt: "Prompt"
    rows: ResultsFile

    def __init__(
        self,
        words: Sequence[str],
        policies: Sequence[str],
        budgets: Sequence[Budget],
        lengths: list[int] | None,
        data: Sequence[str],
        *,
        quiet: bool,
        manner: ReadOptions,
        kv_bits: int | None = None,
    ) -> None:
        if not words:
            raise UsageError(f"no task was given; there are: {', '.join(tasks.TASKS)}", "kvcli eval needle")
        self.quiet = quiet
        self.tasks = list(dict.fromkeys(tasks.lookup(name.strip()) for name in words[0].split(",")))
        self.budgets, self.lengths = budgets, lengths
        self.manner, self.kv_bits = manner, kv_bits
        named, own = words[0], [task.name for task in self.tasks if not task.hides]
        if words[1:] and len(own) == len(self.tasks):
            raise UsageError(f"'{named}' makes its own texts and reads no FILE", f"kvcli eval {own[0]}")
        if lengths is not None and not any(task.sized for task in self.tasks):
            raise UsageError(f"the texts of '{named}' have their own lengths", "leave out --lengths")
        if data and not any(task.passages or task.make is None for task in self.tasks):
            raise UsageError(f"'{named}' reads no --data", f"kvcli eval data --data {data[0]}")
        if policies or budgets or kv_bits is not None:
            from kvcli.recipe import parse

            self.policies: list[Recipe] = [parse(text) for text in policies]
            if kv_bits is not None:
                self.policies = [policy.with_bits(kv_bits) for policy in self.policies]
                parse("full").with_bits(kv_bits)
        else:
            self.policies = []
        if budgets and self.policies and all(p.policy.budget is None for p in self.policies):
            self.policies[0].with_budget(1)  # refuses in its own words
        self.document = self._read(words[1:])
        self.data = data_files.read(data) if data else None

    def _read(self, names: Sequence[str]) -> Document | None:
        if not names:
            return None
        with interruptible("reading the document"):
            document = documents.read(names, sys.stdin.buffer.read() if STDIN in names else None)
        for warning in document.warnings:
            terminal.warn(warning, quiet=self.quiet)
        return document

    def load(
        self,
        name: str | None,
        heads: str | None,
        *,
        device: str | None,
        dtype: str | None,
        weights: str,
        offline: bool,
    ) -> None:
        """The model, with heads where a recipe needs them."""
        with interruptible("loading the model"):
            from kvcli.engine.prompt import Prompt
            from kvcli.models.resolve import resolve
            from kvcli.pipeline import load_model

            self.model = load_model(
                run_with_progress(resolve(name, offline=offline), quiet=self.quiet),
                device=device,
                dtype=dtype,
                weights=weights,
                heads=heads,
                find_heads=not self.policies or any(recipe.policy.needs_heads for recipe in self.policies),
                offline=offline,
                on_notice=partial(terminal.note, "weights", quiet=self.quiet),
            )
            self.prompt = Prompt(self.model.tokenizer)
            from kvcli.retaining_heads import calibration

            if notice := calibration.attach(self.model, self.policies):
                terminal.note("skew", notice, quiet=self.quiet)

    def prepare(self, cases: int | None, seed: int, chunk: int, out: Path | None) -> None:
        """Cases, recipes and the file they go to."""
        from kvcli.evaluate.haystack import Haystack
        from kvcli.evaluate.run import settings
        from kvcli.evaluate.token_counter import TokenCounter

        ruler, document = TokenCounter(self.prompt), self.document
        with interruptible("splitting the document into tokens"):
            name = " ".join(document.files) if document else ""
            haystack = Haystack(ruler, document.text if document else None, name)
        jobs = build_cases.case_specs(
            self.tasks,
            ruler=ruler,
            haystack=haystack,
            data=self.data,
            lengths=self.lengths or [haystack.tokens or DEFAULT_LENGTH],
            cases=cases,
            seed=seed,
        )
        self.work = [(job, self._recipes(task, job)) for task, job in jobs]
        self.rows = ResultsFile(
            out,
            settings(
                self.model,
                self.prompt,
                seed=seed,
                chunk=chunk,
                document=document.sha256 if document else None,
                data=self.data.sha256 if self.data else None,
                manner=self.manner,
            ),
        )
        spec = self.model.spec
        text = f"{len(self.work):,} cases, {sum(len(recipes) for _, recipes in self.work):,} readings or more"
        terminal.note("model", f"{spec.name} {spec.dtype} · {spec.device} · {text}", quiet=self.quiet)

    def _recipes(self, task: tasks.Task, job: "CaseSpec") -> list["Recipe"]:
        """Every policy with every budget; without a policy, what ``ask`` would use."""
        from kvcli.recipe import default

        spec, trained, found = self.model.spec, self.model.heads is not None, list["Recipe"]()
        if job.length is None and any(budget.unit == "%" for budget in self.budgets):
            raise UsageError(f"the texts of '{job.task}' differ in length and so would P % of them", "--budget 1024")
        sizes: list[int | None] = [budget.units(spec, job.length or 0) for budget in self.budgets]
        for units in sizes or [None]:
            if not self.policies:
                usual = default(spec, questions=2 if task.several else 1, budget=units, heads=trained)
                found.append(usual if self.kv_bits is None else usual.with_bits(self.kv_bits))
            for policy in self.policies:
                found.append(policy if units is None or policy.policy.budget is None else policy.with_budget(units))
        return list({str(recipe): recipe for recipe in found}.values())

    def measure(self, chunk: int) -> list["Skipped"]:
        """All cases that are not done yet; returns those that do not fit."""
        from kvcli.evaluate.run import run

        events = run(self.model, self.prompt, self.work, self.rows, chunk=chunk, manner=self.manner)
        screen = _Screen(self.model.spec.device, quiet=self.quiet)
        try:
            while True:
                screen.see(next(events))
        except StopIteration as end:
            skipped: list[Skipped] = end.value
            return skipped
        except INTERRUPTS as stop:
            kept = f"they are in {self.rows.path}" if self.rows.path else "they are lost, because there was no --out"
            raise Interrupted(
                f"interrupted after {terminal.plural(screen.finished, 'case')}; {kept}",
                "the same command again" if self.rows.path else "the same command with --out FILE",
                cause=stop,
            ) from None
        finally:
            screen.close()

    def cells(self, skipped: "list[Skipped]") -> list[report.Cell]:
        """The cells of this run, in the order of its words."""
        from kvcli.evaluate.run import keys

        wanted = dict.fromkeys(
            key for job, recipes in self.work for recipe in recipes for key in keys(job, recipe, self.manner)
        )
        order = dict.fromkeys((key.task, key.recipe, key.length, key.look) for key in wanted)
        return report.cells([row for key, row in self.rows.done.items() if key in wanted], skipped, list(order))


class _Screen:
    """Progress on stderr: a bar for the reading at hand and one line for each finished case."""

    def __init__(self, device: str, *, quiet: bool) -> None:
        self.device, self.quiet = device, quiet
        self.finished = 0
        self._watcher: ProgressDisplay | None = None
        self._last = 0

    def see(self, event: "Prefill | Finished") -> None:
        if isinstance(event, Prefill):
            if self._watcher is None or event.done <= self._last:
                self.close()
                self._watcher = ProgressDisplay(quiet=self.quiet, device=self.device)
            self._last = event.done
            self._watcher.see(event)
            return
        self.close()
        self.finished += 1
        row = event.row
        mean = sum(row.scores) / len(row.scores)
        cell = report.Cell(row.task, row.recipe, row.length, row.look)
        parts: list[Any] = [row.task, report.name(row.length), cell.reader, f"{100 * mean:.0f} %"]
        parts.append(terminal.duration(row.read_s + row.answer_s))
        terminal.note("case", f"{event.done:,}/{event.total:,} " + " · ".join(parts), quiet=self.quiet)

    def close(self) -> None:
        """Take the bar away."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
