"""One run of ``kvcli eval``: its options are checked, cases are made, measured and put into a table."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kvcli import documents
from kvcli.cli.model_loading import load_bare
from kvcli.cli.option_groups import MAIN, OptionGroup, option
from kvcli.cli.options import KV_BITS, ComparisonOptions, ModelOptions
from kvcli.cli.signals import INTERRUPTS, Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import ProgressDisplay
from kvcli.documents import STDIN, Document
from kvcli.errors import UsageError
from kvcli.evaluate import build_cases, report, tasks
from kvcli.evaluate import datasets as data_files
from kvcli.evaluate.case import CaseReading
from kvcli.evaluate.results_file import ResultsFile
from kvcli.events import Prefill, drain
from kvcli.models.defaults import default_chunk
from kvcli.planning.budget import combinations

if TYPE_CHECKING:
    from kvcli.engine.prompt import Prompt
    from kvcli.evaluate.case import CaseSpec
    from kvcli.evaluate.haystack import Haystack
    from kvcli.evaluate.quotes import QuoteCase
    from kvcli.evaluate.results_file import Key
    from kvcli.evaluate.run import Finished, Skipped
    from kvcli.evaluate.token_counter import TokenCounter
    from kvcli.models.model import Model
    from kvcli.recipe import Recipe

DEFAULT_LENGTH = 4096


@dataclass(frozen=True)
class CaseOptions(OptionGroup):
    """The cases and how they are read."""

    PANEL: ClassVar[str] = "Cases"

    lengths: str | None = option("--lengths N,…", "Tokens to read: 4K,8K,1M. Default: all of FILE, or 4K.", None, MAIN)
    cases: int | None = option("--cases N", "Cases per row. Default: 10; with --data all.", None, MAIN, min=1)
    out: Path | None = option("--out FILE", "Save results here, and resume from them.", None, MAIN)
    data: list[str] | None = option("--data PATH", "Benchmark file or a folder of them; repeatable.")
    seed: int = option("--seed N", "Random seed of the generated cases.", 0)
    query_aware: bool = option("--query-aware", "Prefill once for each question, which also precedes the text.", False)
    reread: str = option("--reread N,…", "Passages to re-read before an answer; 0,3 compares both.", "0")
    rerank: str | None = option("--rerank MODEL", "For quotes: also rank by an embedding model or a cross-encoder.")
    kv_bits: int | None = option(*KV_BITS, panel="KV cache")


class Evaluation:
    """One evaluation. Everything that can be wrong with the options is refused before a model is loaded."""

    model: Model
    prompt: Prompt
    rows: ResultsFile

    def __init__(self, words: Sequence[str], options: CaseOptions, compared: ComparisonOptions, *, quiet: bool) -> None:
        if not words:
            raise UsageError(f"no task was given; expected one of {', '.join(tasks.TASKS)}", "kvcli eval needle")
        self.options, self.quiet = options, quiet
        self._chunk = compared.chunk
        self.read_options = CaseReading(options.query_aware, build_cases.reread_counts(options.reread))
        self.lengths = None if options.lengths is None else build_cases.lengths(options.lengths)
        self.tasks = list(dict.fromkeys(tasks.lookup(name.strip()) for name in words[0].split(",")))
        self._check_inputs(words)
        self.policies, self.budgets = compared.parsed()
        if options.kv_bits is not None:
            from kvcli.recipe import parse

            parse("full").with_bits(options.kv_bits)
            self.policies = [policy.with_bits(options.kv_bits) for policy in self.policies]
        self.document = self._read(words[1:])
        self.data = data_files.read(options.data) if options.data else None

    def _check_inputs(self, words: Sequence[str]) -> None:
        """Refuse files, lengths and data that no task uses."""
        if self.options.rerank is not None:
            raise UsageError("--rerank ranks quotes", "kvcli eval quotes FILE --rerank MODEL")
        named, generated = words[0], [task.name for task in self.tasks if not task.hides]
        if alone := [task.name for task in self.tasks if task.name in ("quotes", "fidelity")]:
            raise UsageError(f"'{alone[0]}' is measured alone", f"kvcli eval {alone[0]}")
        if words[1:] and len(generated) == len(self.tasks):
            raise UsageError(f"'{named}' generates its texts and takes no FILE", f"kvcli eval {generated[0]}")
        if self.lengths is not None and not any(task.sized for task in self.tasks):
            raise UsageError(f"the texts of '{named}' have fixed lengths", "leave out --lengths")
        if self.options.data and not any(task.passages or task.make is None for task in self.tasks):
            raise UsageError(f"'{named}' takes no --data", f"kvcli eval data --data {self.options.data[0]}")

    def _read(self, names: Sequence[str]) -> Document | None:
        if not names:
            return None
        with interruptible("reading the document"):
            document = documents.read(names, sys.stdin.buffer.read() if STDIN in names else None)
        for warning in document.warnings:
            terminal.warn(warning, quiet=self.quiet)
        return document

    def load(self, options: ModelOptions, heads: str | None) -> None:
        """Load the model, with retaining heads if a recipe needs them."""
        from kvcli.engine.prompt import Prompt

        self.model = load_bare(
            options,
            quiet=self.quiet,
            weights=options.weights,
            heads=heads,
            find_heads=self._heads(),
            recipes=self.policies,
        )
        self.prompt = Prompt(self.model.tokenizer)

    def _heads(self) -> bool:
        """Whether a recipe may need retaining heads."""
        return not self.policies or any(recipe.policy.needs_heads for recipe in self.policies)

    def _haystack(self) -> tuple[TokenCounter, Haystack]:
        from kvcli.evaluate.haystack import Haystack
        from kvcli.evaluate.token_counter import TokenCounter

        counter, document = TokenCounter(self.prompt), self.document
        with interruptible("splitting the document into tokens"):
            name = " ".join(document.files) if document else ""
            return counter, Haystack(counter, document.text if document else None, name)

    def prepare(self) -> None:
        """Make the cases and open the results file."""
        from kvcli.evaluate.run import settings

        document, seed = self.document, self.options.seed
        counter, haystack = self._haystack()
        specs = build_cases.case_specs(
            self.tasks,
            counter=counter,
            haystack=haystack,
            data=self.data,
            lengths=self.lengths or [haystack.tokens or DEFAULT_LENGTH],
            cases=self.options.cases,
            seed=seed,
        )
        self.work = [(spec, self._recipes(task, spec)) for task, spec in specs]
        self.rows = ResultsFile(
            self.options.out,
            settings(
                self.model,
                self.prompt,
                seed=seed,
                chunk=self.chunk,
                document=document.sha256 if document else None,
                data=self.data.sha256 if self.data else None,
                read_options=self.read_options,
            ),
        )
        spec, readings = self.model.spec, sum(len(recipes) for _, recipes in self.work)
        text = f"{terminal.plural(len(self.work), 'case')}, at least {terminal.plural(readings, 'prefill')}"
        terminal.note("model", f"{spec.name} {spec.dtype} · {spec.device} · {text}", quiet=self.quiet)

    def _recipes(self, task: tasks.Task, case: CaseSpec) -> list[Recipe]:
        """Every recipe with every budget; if none was named, the one that ``ask`` would use."""
        from kvcli.recipe import choose

        spec, bits, heads = self.model.spec, self.options.kv_bits, self.model.heads is not None
        if case.length is None and any(budget.unit == "%" for budget in self.budgets):
            raise UsageError(
                f"the texts of '{case.task}' differ in length, so P % has no single value", "--budget 1024"
            )

        published = getattr(self.model.heads_card, "recipe", "")
        questions = 2 if task.several else 1

        def usual(units: int | None) -> Recipe:
            return choose(spec, None, questions=questions, budget=units, bits=bits, heads=heads, published=published)

        return combinations(self.policies, self.budgets, spec, case.length or 0, usual)

    @property
    def chunk(self) -> int:
        """Tokens of a forward pass of prefill."""
        spec = self.model.spec
        return self._chunk or default_chunk(spec)

    def _events(self) -> Generator[Any, None, list[Skipped] | None]:
        from kvcli.evaluate.run import run

        return run(self.model, self.prompt, self.work, self.rows, chunk=self.chunk, read_options=self.read_options)

    def facts(self) -> dict[str, Any]:
        """Fields of the JSON besides the cells."""
        return {}

    def numbers(self, _cell: report.Cell) -> dict[str, Any]:
        """Fields of a cell's JSON that not all tasks have."""
        return {}

    def table(self, found: list[report.Cell]) -> tuple[list[str], list[list[str]], list[str]]:
        """Headings, rows and footnotes."""
        return report.table(found)

    def notes(self) -> list[str]:
        """Lines below the table."""
        return []

    def measure(self) -> list[Skipped]:
        """Run the cases that have no result yet; returns those that do not fit."""
        events = self._events()
        screen = _Progress(self.model.spec.device, quiet=self.quiet)
        try:
            return drain(events, screen.see) or []
        except INTERRUPTS as stop:
            kept = f"saved in {self.rows.path}" if self.rows.path else "not saved, because --out was not given"
            raise Interrupted(
                f"interrupted after {terminal.plural(screen.finished, 'case')}; {kept}",
                "run the same command to resume" if self.rows.path else "the same command with --out FILE",
                cause=stop,
            ) from None
        finally:
            screen.close()

    def cells(self, skipped: list[Skipped]) -> list[report.Cell]:
        """The cells of the table, in the order of the arguments."""
        wanted = dict.fromkeys(self._keys())
        order = dict.fromkeys((key.task, key.recipe, key.length, key.look) for key in wanted)
        return report.cells([row for key, row in self.rows.done.items() if key in wanted], skipped, list(order))

    def _keys(self) -> Iterator[Key]:
        """The keys of all rows, in the order of the arguments."""
        from kvcli.evaluate.run import keys

        for job, recipes in self.work:
            for recipe in recipes:
                yield from keys(job, recipe, self.read_options)


class QuotesEvaluation(Evaluation):
    """The evaluation of quotes: rankings in the place of recipes, and nothing is read."""

    cases: list[QuoteCase]

    def _check_inputs(self, _words: Sequence[str]) -> None:
        if self.lengths is not None and self.options.data:
            raise UsageError("the text of --data has its own length", "leave out --lengths")
        if self.options.query_aware or self.options.reread != "0" or self.options.kv_bits is not None:
            raise UsageError(
                "'quotes' reads nothing: --query-aware, --reread and --kv-bits have no effect", "kvcli eval quotes"
            )

    def load(self, options: ModelOptions, heads: str | None) -> None:
        if self.options.rerank is not None:
            from kvcli.models.resolve import here

            here(self.options.rerank, "encoder")
        if self.policies or self.budgets or heads is not None:
            raise UsageError("'quotes' reads nothing: --policy, --budget and --heads have no effect", "leave them out")
        super().load(options, heads)

    def _heads(self) -> bool:
        return False

    def prepare(self) -> None:
        from kvcli.evaluate import quotes
        from kvcli.evaluate.case import CaseRequest
        from kvcli.evaluate.run import settings

        needles: list[QuoteCase] = []
        document, seed = self.document, self.options.seed
        if self.data is None:
            counter, haystack = self._haystack()
            for length in self.lengths or [haystack.tokens or DEFAULT_LENGTH]:
                for number in range(self.options.cases or build_cases.CASES):
                    wanted = CaseRequest("quotes", number, length, seed, counter, haystack)
                    needles.append(quotes.needle_case(wanted))
        self.cases = quotes.quote_cases(document, self.data, needles, self.options.cases, seed)
        digests = (document.sha256 if document else None, self.data.sha256 if self.data else None)
        made = settings(self.model, self.prompt, seed=seed, chunk=self.chunk, document=digests[0], data=digests[1])
        self.rows = ResultsFile(self.options.out, made)
        text = terminal.plural(len(self.cases), "question")
        terminal.note("model", f"{self.model.spec.name} {self.model.spec.dtype} · {text}", quiet=self.quiet)

    def _events(self) -> Generator[Any, None, list[Skipped] | None]:
        from kvcli.evaluate.quotes import run_quotes
        from kvcli.pipeline import Pipeline

        return run_quotes(Pipeline(self.model), self.cases, self.rows, self.options.rerank)

    def _keys(self) -> Iterator[Key]:
        from kvcli.evaluate.quotes import keys

        yield from keys(self.cases, self.options.rerank)

    def facts(self) -> dict[str, Any]:
        from kvcli.evaluate.quotes import separation

        wanted = set(self._keys())
        found = separation(row for key, row in self.rows.done.items() if key in wanted)
        return {} if found is None else {"separation": round(found, 4)}

    def notes(self) -> list[str]:
        found = self.facts()
        return [f"separation of right and wrong texts (AUROC): {found['separation']:.3f}"] if found else []


class FidelityEvaluation(Evaluation):
    """The evaluation of fidelity: full attention answers, and recipes are forced along its answers."""

    def _check_inputs(self, words: Sequence[str]) -> None:
        if self.options.query_aware or self.options.reread != "0":
            raise UsageError("'fidelity' takes no --query-aware and no --reread", "leave them out")
        if self.options.data:
            self.tasks = [replace(task, make=None, sized=False) for task in self.tasks]
            if words[1:] or self.lengths is not None:
                raise UsageError("the texts of --data are complete: they take no FILE and no --lengths", "leave it out")

    def _events(self) -> Generator[Any, None, list[Skipped] | None]:
        from kvcli.evaluate.fidelity import run_fidelity
        from kvcli.pipeline import Pipeline

        return run_fidelity(Pipeline(self.model, chunk_size=self.chunk), self.work, self.rows)

    def numbers(self, cell: report.Cell) -> dict[str, Any]:
        from kvcli.evaluate.fidelity import numbers

        return numbers(cell)

    def table(self, found: list[report.Cell]) -> tuple[list[str], list[list[str]], list[str]]:
        from kvcli.evaluate.fidelity import table

        return table(found)


class _Progress:
    """Progress on stderr: a bar for the current prefill and one line per finished case."""

    def __init__(self, device: str, *, quiet: bool) -> None:
        self.device, self.quiet = device, quiet
        self.finished = 0
        self._watcher: ProgressDisplay | None = None
        self._last = 0

    def see(self, event: Prefill | Finished) -> None:
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
