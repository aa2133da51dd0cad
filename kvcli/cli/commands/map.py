"""``kvcli map FILES… -Q questions.txt -o answers.jsonl``: the options of the command, checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from kvcli.cli import templates
from kvcli.cli.commands.ask import AskOptions
from kvcli.cli.map_loop import MapRun
from kvcli.cli.model_loading import open_model
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    OutputOptions,
    ReadOptions,
    RunOptions,
    named_files,
)
from kvcli.cli.output import refuse_output
from kvcli.cli.ray_option import LOCAL, RayCommand, RayOptions, gpus
from kvcli.cli.request import parse_request
from kvcli.cli.signals import install_sigterm, interruptible
from kvcli.cli.views import terminal
from kvcli.documents import STDIN
from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.cli.request import Request
    from kvcli.corpus.ray_workers import RayWorkers
    from kvcli.corpus.worker import LocalWorkers
    from kvcli.models.weights import ModelSource

EXAMPLE = "kvcli map *.pdf -Q questions.txt -o answers.jsonl"


@dataclass(frozen=True)
class MapOptions(OptionGroup):
    """The documents and questions of ``map``, and where the answers go."""

    PANEL: ClassVar[str] = "Documents and questions"

    files: list[str] | None = named_files()
    question_files: list[str] | None = option(
        "-Q, --questions FILE", "File of questions: one per line, or JSON Lines.", None, MAIN
    )
    questions: list[str] | None = option("-e, --question TEXT", "Question; repeat to ask several.", None, MAIN)
    template: str = option("-t, --template NAME", "Task: kvcli templates ls", templates.DEFAULT)
    output: str | None = option("-o, --output FILE", "Add answers to FILE, one JSON object per line.", None, MAIN)
    ordered: bool = option("--ordered", "Lines in the order of documents and questions.", False)
    retry_failed: bool = option("--retry-failed", "Ask again what failed in an earlier run.", False)
    tables: list[str] | None = option("--table FILE", "Also write FILE.csv or FILE.parquet, a row per document.")
    with_quotes: bool = option("--with-quotes", "In the table, a quote and its page for each field.", False)
    plan: bool = option("--plan", "Print tokens, time, memory and disk of the run; ask nothing.", False, MAIN)
    no_cite: bool = option("--no-cite", "Do not look for the answers' quotes in the documents.", False)
    quotes: int = option("--quotes N", "Sentences of the document to add to an answer.", 3, min=0)

    def request(self, words: list[str], usual: str | None) -> Request:
        """Documents and questions; every word is a document. Raises ``UsageError``."""
        files = [*(self.files or []), *words]
        if not files:
            raise UsageError("no document was given", EXAMPLE)
        if STDIN in files:
            raise UsageError("kvcli map reads files, and - is standard input", EXAMPLE)
        if not (self.questions or self.question_files or usual):
            raise UsageError("no question was given", EXAMPLE)
        asked = self.questions or ([usual] if usual and not self.question_files else [])
        return parse_request([], files, asked, self.question_files or [])

    def __post_init__(self) -> None:
        if self.retry_failed and self.output is None:
            raise UsageError("--retry-failed needs the file of an earlier run", "-o answers.jsonl")
        if self.with_quotes and not self.tables:
            raise UsageError("--with-quotes adds columns to a table", "--table answers.csv")


class Map(RayCommand):
    """``map``: the address of ``--ray`` may be left out."""


@takes_groups
def command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Documents, folders or patterns.", show_default=False)
    ] = None,
    *,
    question: MapOptions,
    read: ReadOptions,
    answer: AskOptions,
    ray: RayOptions,
    output: OutputOptions,
) -> None:
    """Ask the same questions about each of many documents.

    Each answer is one line of JSON, written when it is complete. The same command goes on after Ctrl-C: answers that
    FILE has already are skipped by the content of document, question, model and recipe. A document that fails gets a
    line with its error, and the exit code is 8. With --ray several workers answer, and if one dies, another takes up
    its document.

    \b
    Examples:
      kvcli map contracts/*.pdf -Q questions.txt -o answers.jsonl
      kvcli map contracts/ -Q questions.txt -o answers.jsonl --ray --workers 2
      kvcli map contracts/ -e "Who pays?" --schema payer.json -o answers.jsonl --table payers.csv --with-quotes
    """
    task = templates.load(question.template)
    if task.quotes_only:
        raise UsageError(
            f"kvcli map writes answers, and the task {question.template} prints quotes only",
            f"kvcli ask --each -t {question.template} FILE… …",
        )
    request = question.request(words or [], task.question)
    answer, read = answer.under(task), replace(read, prompt=read.prompt.under(task))
    answer.refuse_unused()
    cite, quotes = not question.no_cite, 0 if question.no_cite else question.quotes
    options = RunOptions.of(read, answer, output, cite=cite, quotes=quotes, field_quotes=question.with_quotes).under(
        task, answer.max_tokens
    )
    tables = tuple(Path(name) for name in question.tables or ())
    inputs = [*request.files, *(question.question_files or [])]
    for path in [*([question.output] if question.output else []), *map(str, tables)]:
        refuse_output(Path(path), inputs)
    run = MapRun(
        options,
        request,
        None if question.output is None else Path(question.output),
        question.ordered,
        question.retry_failed,
        tables,
        lambda *given: _workers(ray, *given),
    )
    if question.plan:
        run.plan(lambda *given: ray.rates(options, *given))
    else:
        run.run()


@contextmanager
def _workers(ray: RayOptions, options: RunOptions, source: ModelSource) -> Iterator[LocalWorkers | RayWorkers]:
    """One worker in this process; with ``--ray``, or if there are several GPUs and Ray is installed, several."""
    from kvcli.corpus.record import installed

    several = gpus() if ray.ray is None and options.device in (None, "cuda") else 0
    if several > 1 and installed("ray") is None:
        text = f"one of {several} GPUs is used; for all of them: pip install 'kvcli[ray]'"
        terminal.note("workers", text, quiet=options.quiet)
    elif several > 1:
        terminal.note("workers", f"{several} GPUs: one worker each, on Ray", quiet=options.quiet)
        ray = replace(ray, ray=LOCAL)
    if ray.ray is None:
        from kvcli.corpus.worker import LocalWorkers, Worker

        yield LocalWorkers(Worker(open_model(options).model, options))
        return
    from kvcli.models.spec import fingerprint

    with interruptible("starting Ray"), ray.make(options, fingerprint(source, options.weights)) as workers:
        install_sigterm()  # Ray has one of its own
        where = ray.address or "this machine"
        text = f"{terminal.plural(workers.count, 'worker')} on Ray at {where}; each loads {source.name}"
        terminal.note("workers", text, quiet=options.quiet)
        yield workers
