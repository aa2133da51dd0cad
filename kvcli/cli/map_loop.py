"""``kvcli map``: the same questions about each of many documents, as lines in a file or on stdout."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from kvcli.cli import inputs
from kvcli.cli.exit_codes import PARTLY_FAILED
from kvcli.cli.model_loading import check
from kvcli.cli.signals import DeferredSignals, Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.cli.views.progress import ProgressDisplay, run_with_progress
from kvcli.corpus import table
from kvcli.corpus.answers_file import AnswersFile
from kvcli.corpus.task import DocumentTask, DocumentTasks, corpus, find_files
from kvcli.events import Mapped, Notice, Prefill, Token

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.cli.request import Request
    from kvcli.corpus.worker import Item
    from kvcli.models.weights import ModelSource
    from kvcli.planning.speed_history import Rates
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec


class Workers(Protocol):
    """One worker in this process, or several on Ray."""

    def items(self, tasks: list[DocumentTask], stop: Callable[[], bool]) -> Iterator[Item]:
        """Yield events. Raises ``Stopped`` if ``stop`` returned true."""


@dataclass(frozen=True)
class MapRun:
    """One run of ``kvcli map``.

    Attributes:
        options, request: as of ``ask``; every word is a file.
        output: the file of answers; ``None`` for stdout.
        ordered: lines are in the order of the documents and questions.
        retry_failed: failures of earlier runs are asked again.
        tables: files of ``--table``.
        workers: makes them, once there is something to ask; gets the options and the model's files.
    """

    options: RunOptions
    request: Request
    output: Path | None
    ordered: bool
    retry_failed: bool
    tables: tuple[Path, ...]
    workers: Callable[[RunOptions, ModelSource], Any]

    def find(self) -> tuple[ModelSource, DocumentTasks]:
        """The model's files and the documents of the run; loads no weights."""
        from kvcli.models.resolve import resolve
        from kvcli.models.spec import fingerprint

        options, questions = self.options, self.request.questions
        check(options)
        for path in self.tables:
            table.check(path)
        files, notes = find_files(self.request.files, options.reading)
        with interruptible("looking for the model"):
            source = run_with_progress(resolve(options.model, offline=options.offline), quiet=options.quiet)
            if not options.quiet:
                row.start(f"loading {source.name}")
            identity = options.identity(source.name, fingerprint(source, options.weights), alone=len(questions) == 1)
        with interruptible("looking at the documents"):
            web = inputs.web(options, files, inputs.document_cache(options))
            found = corpus(files, notes, questions, identity, web)
        for note in found.notes:
            terminal.note("corpus", note, quiet=options.quiet)
        return source, found

    def run(self) -> None:
        """Ask what is not answered yet. Raises ``typer.Exit`` with 8 if a document failed."""
        source, found = self.find()
        file = None if self.output is None else AnswersFile(self.output)
        lines = _Lines(self, found, file)
        try:
            self._ask(source, found, lines)
        finally:
            lines.close()
        if file is not None:
            terminal.note("answers", f"{lines.written()} in {file.path}", quiet=self.options.quiet)
        failed = lines.failed_files
        if failed:
            what = terminal.plural(len(found.tasks) + len(found.unreadable), "document")
            hint = "" if self.output is None else "; to ask again: the same command with --retry-failed"
            terminal.warn(f"{len(failed):,} of {what} failed{hint}")
            raise typer.Exit(PARTLY_FAILED)

    def plan(self, workers: Callable[[ModelSpec, Recipe], list[tuple[str, int, Rates]]]) -> None:
        """Print what is left to do and what it takes; asks nothing."""
        from kvcli.cli.views import map_plan

        source, found = self.find()
        file = AnswersFile(self.output) if self.output is not None and self.output.exists() else None
        lines = _Lines(self, found, file)
        tasks = lines.left()
        if file is not None:
            file.close()
        terminal.note("corpus", lines.summary(tasks), quiet=self.options.quiet)
        for each in found.unreadable:
            terminal.error(each.error)
        with interruptible("counting tokens"):
            map_plan.show(tasks, self.options, source, workers)

    def _ask(self, source: ModelSource, found: DocumentTasks, lines: _Lines) -> None:
        quiet, tasks, total = self.options.quiet, lines.left(), len(found.tasks) + len(found.unreadable)
        terminal.note("corpus", lines.summary(tasks), quiet=quiet)
        lines.unreadable()
        if tasks:
            with self.workers(self.options, source) as workers, ProgressDisplay(quiet=quiet) as display:
                _drive(workers, tasks, lines, display, total)


def _drive(
    workers: Workers, tasks: Sequence[DocumentTask], lines: _Lines, display: ProgressDisplay, total: int
) -> None:
    """Run the tasks to their end, or until Ctrl-C or SIGTERM. ``total`` counts the documents of the whole run.

    Raises:
        Interrupted: with the number of documents that are done.
    """
    from kvcli.corpus.worker import Answered, DocumentFinished, Failed, Stopped

    signals, began = DeferredSignals(), time.monotonic()
    size, bytes_done, done, tokens, now = sum(task.size for task in tasks), 0, total - len(tasks), 0, 0
    answers = 0
    items = workers.items(list(tasks), lambda: signals.cause is not None)
    try:
        with signals, closing(items):  # type: ignore[type-var]
            for item in items:
                if isinstance(item, Answered | Failed | Notice):
                    display.close()
                lines.see(item)
                answers += isinstance(item, Answered)
                if isinstance(item, Prefill):
                    now = item.done
                if isinstance(item, DocumentFinished) or (isinstance(item, Failed) and item.question is None):
                    tokens += item.tokens if isinstance(item, DocumentFinished) else 0
                    now, done, bytes_done = 0, done + 1, bytes_done + item.task.size
                if not isinstance(item, Token):
                    failed, share = len(lines.failed_files), bytes_done / size if size else 1.0
                    display.see(Mapped(done, total, failed, tokens + now, time.monotonic() - began, share))
    except Stopped:
        kept = terminal.plural(answers, "answer")
        raise Interrupted(
            f"interrupted after {done:,} of {total:,} documents; {kept} of this run kept",
            "the same command again to go on",
            cause=signals.cause or KeyboardInterrupt(),
        ) from None


class _Lines:
    """The lines of a run: in a file as they come and sorted at the end, or on stdout."""

    def __init__(self, run: MapRun, found: DocumentTasks, file: AnswersFile | None) -> None:
        self.run, self.found, self.file = run, found, file
        self._keys = found.keys
        self._failed = dict[str, str]()
        self._held = dict[str, str]()
        self._records = dict[str, dict[str, Any]]()
        self._next = 0
        if file is None:
            return
        if file.repaired:
            terminal.note(
                "repaired", f"the last line of {file.path} was incomplete and is asked again", quiet=run.options.quiet
            )
        mine, names = set(self._keys), {task.name for task in found.tasks}
        gone = {key for key, name in file.failed.items() if key not in mine and name in names}
        file.drop(gone | {key for key in file.failed if key in mine and run.retry_failed})
        self._failed = {key: name for key, name in file.failed.items() if key in mine}

    @property
    def failed_files(self) -> set[str]:
        return set(self._failed.values())

    def left(self) -> list[DocumentTask]:
        """The tasks with the questions that have no line yet."""
        if self.file is None:
            return list(self.found.tasks)
        done = [task.without(key for key in task.keys if key in self.file) for task in self.found.tasks]
        return [task for task in done if task.questions and task.failure_key not in self.file]

    def summary(self, tasks: Sequence[DocumentTask]) -> str:
        total = len(self.found.tasks) + len(self.found.unreadable)
        questions = terminal.plural(len({q.text for task in self.found.tasks for q in task.questions}), "question")
        done = total - len(tasks) - len(self.found.unreadable)
        parts = [terminal.plural(total, "document"), questions]
        return " · ".join([*parts, *([f"{done:,} done before"] if done else [])])

    def written(self) -> str:
        """How many answers and failures of this command the file has, those of earlier runs among them."""
        there = sum(key in self.file for key in self._keys) if self.file is not None else 0
        failed = len(self._failed)
        answers = terminal.plural(there - failed, "answer")
        return f"{answers} and {terminal.plural(failed, 'failure')}" if failed else answers

    def unreadable(self) -> None:
        """Write the failures of files that cannot be opened."""
        for each in self.found.unreadable:
            if self.file is None or each.key not in self.file:
                self._add(each.record())
                terminal.error(each.error)
            self._failed[each.key] = each.name

    def see(self, item: Item) -> None:
        from kvcli.corpus.worker import Answered, Failed, failure_record

        if isinstance(item, Answered):
            self._add(item.record)
        elif isinstance(item, Failed):
            record = failure_record(item.task, item.question, item.error)
            self._failed[record["key"]] = item.task.name
            self._add(record)
            terminal.error(item.error)
        elif isinstance(item, Notice):
            terminal.warn(item.text, quiet=self.run.options.quiet)

    def _add(self, record: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.add(record)
            return
        if self.run.tables:
            self._records[record["key"]] = record
        line = json.dumps(record, ensure_ascii=False)
        if not self.run.ordered:
            print(line, flush=True)
            return
        self._held[record["key"]] = line
        self._print_held(all=False)

    def _print_held(self, *, all: bool) -> None:
        """Print lines whose earlier ones are printed. A document has answers or one failure, so keys may be unused."""
        failures = {task.failure_key: task.keys for task in self.found.tasks}
        while self._next < len(self._keys):
            key = self._keys[self._next]
            if key in self._held:
                print(self._held.pop(key), flush=True)
            elif not all and key not in failures and not self._skipped(key):
                return
            self._next += 1

    def _skipped(self, key: str) -> bool:
        """Whether the document of an answer has failed, so that no such line comes."""
        return any(key in task.keys and task.failure_key in self._failed for task in self.found.tasks)

    def close(self) -> None:
        """Sort the file, print what is held, write the tables."""
        if self.file is not None:
            if self.run.ordered:
                self.file.sort(self._keys)
        else:
            self._print_held(all=True)
        if self.run.tables and (self.file is not None or self._records):
            records = self.file.records(self._keys) if self.file is not None else iter(self._records.values())
            made = table.rows(self.found.tasks, records, self.run.request.questions)
            for path in self.run.tables:
                table.write(path, made)
                terminal.note("table", f"{path} · {terminal.plural(len(made), 'row')}", quiet=self.run.options.quiet)
        if self.file is not None:
            self.file.close()
