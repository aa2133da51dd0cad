"""``kvcli bench``: how fast a model reads and answers here, beside what the machine allows."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcli import types
from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.options import CHUNK, DEBUG, DEVICE, DTYPE, HEADS, MODEL, OFFLINE, QUIET, WEIGHTS
from kvcli.cli.report import versions
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.errors import KvcliError, ResourceError, TooLongError, UsageError
from kvcli.evaluate.build_cases import lengths
from kvcli.planning.budget import Budget

if TYPE_CHECKING:
    from kvcli.bench.check import Check
    from kvcli.bench.report import BenchRow
    from kvcli.bench.roofline import Roofline
    from kvcli.bench.run import Speed
    from kvcli.models.model import Model
    from kvcli.recipe import Recipe

FULL = "transformers"
"""What transformers' own full attention is called in the table."""


def command(
    model: MODEL = None,
    random: Annotated[
        Path | None,
        typer.Option(
            "--random-weights", metavar="CONFIG", help="Instead: random weights of the shape in this config.json."
        ),
    ] = None,
    prompts: Annotated[
        str, typer.Option("-p", "--prompt-tokens", metavar="N,…", help="Tokens to read: 1K,16K,1M.")
    ] = "4K",
    generate: Annotated[
        int, typer.Option("-g", "--generate", metavar="N", min=2, help="Tokens to generate after each reading.")
    ] = 64,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="RECIPE", help="What to keep: kvcli recipes. Repeatable: side by side."),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="N|P%|SIZE", help="Units to keep: 16384, 12% or 2GiB. Repeatable."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--vs", metavar="full", help="Compare with transformers' own full attention, in the same run."),
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", min=1, help="Measure so often; medians.")] = 1,
    heads: HEADS = None,
    chunk: CHUNK = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    weights: WEIGHTS = "bf16",
    offline: OFFLINE = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and no table.")] = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Measure how fast a model reads and answers on this machine.

    Random tokens go through the very calls of ``kvcli ask``. Prefill is compared with matrix products alone, decoding
    with reading as many bytes, both measured in the same run; memory with the plan. A recipe whose results differ
    from the model's own attention on a short text gets no figures. JSON is the last line.
    """
    sizes = lengths(prompts, "-p")
    wanted = [Budget.parse(text) for text in budgets or []]
    if against not in (None, "full"):
        raise UsageError(f"--vs {against}: there is 'full', transformers' own full attention", "--vs full")
    if random is not None and (model or heads):
        raise UsageError("--random-weights is a model of its own, with random heads", "leave out -m and --heads")
    from kvcli.recipe import parse

    named = [parse(text) for text in policies or []]
    if wanted and named and all(recipe.policy.budget is None for recipe in named):
        named[0].with_budget(1)  # refuses in its own words
    how = {"device": device, "dtype": dtype, "weights": weights}
    loaded = _load(model, random, heads, named, how, offline=offline, quiet=quiet)
    bench = _Bench(loaded, chunk or types.CHUNK, generate, repeat, quiet=quiet)
    spec = loaded.spec
    terminal.note("model", f"{spec.name} {spec.dtype} · {spec.device}", quiet=quiet)
    rows, top = bench.all(sizes, named, wanted, full=against == "full")
    if all(row.speed is None for row in rows):
        raise bench.problem
    if not as_json:
        _show(rows, top)
    _print_json(bench, rows, top)


def _load(
    name: str | None,
    random: Path | None,
    heads: str | None,
    named: Sequence["Recipe"],
    how: dict[str, Any],
    *,
    offline: bool,
    quiet: bool,
) -> "Model":
    with interruptible("loading the model"):
        trained = any(recipe.policy.needs_heads for recipe in named)
        if random is not None:
            from kvcli.models.random_weights import build
            from kvcli.retaining_heads.module import RetainingHeads

            model = build(random, **how)
            if trained or not named:
                untrained = RetainingHeads.like(model.spec).requires_grad_(False)
                model.heads = untrained.to(model.device, model.dtype)
            return model
        from kvcli.models.resolve import resolve
        from kvcli.pipeline import load_model

        model = load_model(
            run_with_progress(resolve(name, offline=offline), quiet=quiet),
            **how,
            heads=heads,
            find_heads=trained or not named,
            offline=offline,
            on_notice=partial(terminal.note, "weights", quiet=quiet),
        )
        from kvcli.retaining_heads import calibration

        if notice := calibration.attach(model, named):
            terminal.note("skew", notice, quiet=quiet)
        return model


class _Bench:
    """All measurements of one run."""

    def __init__(self, model: "Model", chunk: int, generate: int, repeat: int, *, quiet: bool) -> None:
        self.model, self.chunk, self.generate, self.repeat, self.quiet = model, chunk, generate, repeat, quiet
        self.problem: KvcliError = UsageError("nothing was measured")

    def all(
        self, sizes: Sequence[int], named: Sequence["Recipe"], budgets: Sequence[Budget], *, full: bool
    ) -> "tuple[list[BenchRow], Roofline]":
        """Every recipe at every length, checked first; ceilings before and after each."""
        from kvcli.bench.check import check

        with interruptible("measuring"):
            top = self.ceilings()
            checks: dict[str, Check] = {}
            rows = []
            for tokens in sizes:
                for recipe in self._recipes(named, budgets, tokens):
                    name = str(recipe)
                    if name not in checks:
                        checks[name] = check(self.model, recipe)
                    rows.append(self._one(recipe, tokens, checks[name]))
                    top = top.better(self.ceilings())  # a machine with other work on it is not always equally fast
                if full:
                    rows.append(self._full(tokens))
            return rows, top

    def ceilings(self) -> "Roofline":
        """As the machine is now."""
        from kvcli.bench import roofline
        from kvcli.bench.roofline import Roofline

        spec = self.model.spec
        return Roofline(roofline.matmul(spec, self.chunk), roofline.bandwidth(spec.device))

    def _recipes(self, named: Sequence["Recipe"], budgets: Sequence[Budget], tokens: int) -> list["Recipe"]:
        """Every policy with every budget; without a policy, what ``ask`` would use."""
        from kvcli.recipe import default

        spec, found = self.model.spec, list["Recipe"]()
        sizes: list[int | None] = [budget.units(spec, tokens) for budget in budgets]
        for units in sizes or [None]:
            for recipe in named or [default(spec, budget=units, heads=self.model.heads is not None)]:
                found.append(recipe if units is None or recipe.policy.budget is None else recipe.with_budget(units))
        return list({str(recipe): recipe for recipe in found}.values())

    def _one(self, recipe: "Recipe", tokens: int, checked: "Check") -> "BenchRow":
        from kvcli.bench.report import BenchRow
        from kvcli.bench.run import measure

        name = str(recipe)
        terminal.note("bench", f"{name} · {tokens:,} tokens", quiet=self.quiet)
        events = measure(self.model, recipe, tokens, self.generate, chunk=self.chunk, repeat=self.repeat)
        try:
            speed = run_with_progress(events, quiet=self.quiet, device=self.model.spec.device)
        except (TooLongError, ResourceError) as problem:
            return self._skipped(name, tokens, checked, problem)
        return BenchRow(name, tokens, checked, speed)

    def _full(self, tokens: int) -> "BenchRow":
        from kvcli.bench.report import BenchRow
        from kvcli.bench.run import full

        terminal.note("bench", f"{FULL}, full attention · {tokens:,} tokens", quiet=self.quiet)
        try:
            return BenchRow(FULL, tokens, None, full(self.model, tokens, self.generate))
        except ResourceError as problem:
            return self._skipped(FULL, tokens, None, problem)

    def _skipped(self, name: str, tokens: int, checked: "Check | None", problem: KvcliError) -> "BenchRow":
        from kvcli.bench.report import BenchRow

        self.problem = problem
        terminal.warn(f"{name} at {tokens:,} tokens is skipped: {problem.message}", quiet=self.quiet)
        return BenchRow(name, tokens, checked, None, problem.message)


def _show(rows: "Sequence[BenchRow]", top: "Roofline") -> None:
    from kvcli.bench.report import COLUMNS

    terminal.table(COLUMNS, [row.cells(top) for row in rows])
    text = f"ceilings: matrix products {top.matmul / 1e9:,.0f} GFLOP/s, memory {top.bandwidth / 1e9:,.1f} GB/s"
    terminal.write(sys.stdout, text)
    full = _full_speeds(rows)
    for row in rows:
        if row.reason:
            terminal.write(sys.stdout, terminal.oneline(f"{row.recipe} at {row.tokens:,}: {row.reason}"))
        if times := row.times(full.get(row.tokens)):
            beside = f"prefill {times['prefill']:.2f} and decode {times['decode']:.2f} times as fast as {FULL}"
            terminal.write(sys.stdout, f"{row.recipe} at {row.tokens:,}: {beside}")


def _full_speeds(rows: "Sequence[BenchRow]") -> "dict[int, Speed | None]":
    return {row.tokens: row.speed for row in rows if row.recipe == FULL}


def _print_json(bench: _Bench, rows: "Sequence[BenchRow]", top: "Roofline") -> None:
    spec = bench.model.spec
    full = _full_speeds(rows)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "bench": [row.to_json(top, full.get(row.tokens)) for row in rows],
        "ceilings": {"matmul_flops": round(top.matmul), "bandwidth_bytes_per_s": round(top.bandwidth)},
        "settings": {
            "model": asdict(spec),
            "chunk": bench.chunk,
            "generated": bench.generate,
            "repeat": bench.repeat,
        },
        "versions": versions(),
    }
    print(json.dumps(result, ensure_ascii=False), flush=True)
