"""Many documents: ``kvcli map`` writes lines to a file or to stdout, ``kvcli ask --each`` prints answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from kvcli.cli import answer_loop, inputs
from kvcli.cli.exit_codes import PARTLY_FAILED
from kvcli.cli.report import Report
from kvcli.cli.setup import LoadedModel, check, open_model
from kvcli.cli.signals import DeferredSignals, Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.cli.views.progress import ProgressDisplay, run_with_progress
from kvcli.corpus import table
from kvcli.corpus.answers_file import AnswersFile
from kvcli.corpus.task import Corpus, Settings, Task, corpus, find_files
from kvcli.documents.kept import DocumentCache
from kvcli.events import Mapped, Notice, Prefill, Token
from kvcli.utils import process_memory

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.cli.output import AnswerWriter
    from kvcli.cli.request import Request
    from kvcli.corpus.worker import Answered, Item
    from kvcli.documents.web import Web
    from kvcli.models.source import ModelSource


class Workers(Protocol):
    """What answers tasks: one worker in this process, or several on Ray."""

    def items(self, tasks: list[Task], stop: Callable[[], bool]) -> Iterator[Item]:
        """What happens; raises ``Stopped`` if ``stop`` returned true."""


def settings(options: RunOptions, **more: Any) -> Settings:
    """What the workers need of the options of a run."""
    names = {f.name for f in fields(options)} & {f.name for f in fields(Settings)} - {"cite", "quotes"}
    found = {name: getattr(options, name) for name in names}
    cite = options.cite != "off"
    return Settings(**found, cite=cite, quotes=options.quotes if cite else 0, **more)


def _web(options: RunOptions, files: Sequence[str]) -> Web | None:
    return inputs.web(options, files, DocumentCache.default(reuse=not options.rebuild) if options.cache else None)


def resolve(options: RunOptions, own: Settings, *, alone: bool) -> tuple[ModelSource, str]:
    """The model's files, and the identity of the run's answers; loads no weights."""
    from kvcli.models.resolve import resolve
    from kvcli.models.spec import fingerprint

    with interruptible("looking for the model"):
        source = run_with_progress(resolve(options.model, offline=options.offline), quiet=options.quiet)
        return source, own.identity(fingerprint(source, options.weights), alone=alone)


def drive(
    workers: Workers,
    tasks: Sequence[Task],
    see: Callable[[Item], None],
    *,
    total: int,
    failed: int,
    show: Callable[[Mapped], None] | None,
) -> None:
    """Run the tasks to their end, or until Ctrl-C or SIGTERM.

    Args:
        workers, tasks: what is done.
        see: gets every item.
        total, failed: documents of the whole run, and those that failed before.
        show: gets progress.

    Raises:
        Interrupted: with the number of documents that are done.
    """
    from kvcli.corpus.worker import Answered, Failed, Finished, Stopped

    signals, began = DeferredSignals(), time.monotonic()
    size, bytes_done, done, tokens, now = sum(task.size for task in tasks), 0, total - len(tasks), 0, 0
    bad, answers = set[str](), 0

    def progress() -> None:
        if show is not None:
            share = bytes_done / size if size else 1.0
            show(Mapped(done, total, failed + len(bad), tokens + now, time.monotonic() - began, share))

    items = workers.items(list(tasks), lambda: signals.cause is not None)
    try:
        with signals, closing(items):  # type: ignore[type-var]
            for item in items:
                see(item)
                answers += isinstance(item, Answered)
                if isinstance(item, Prefill):
                    now = item.done
                elif isinstance(item, Failed):
                    bad.add(item.task.sha256)
                if isinstance(item, Finished) or (isinstance(item, Failed) and item.question is None):
                    tokens += item.tokens if isinstance(item, Finished) else 0
                    now, done, bytes_done = 0, done + 1, bytes_done + item.task.size
                if not isinstance(item, Token):
                    progress()
    except Stopped:
        kept = terminal.plural(answers, "answer")
        raise Interrupted(
            f"interrupted after {done:,} of {total:,} documents; {kept} of this run kept",
            "the same command again to go on",
            cause=signals.cause or KeyboardInterrupt(),
        ) from None


# --- kvcli map ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapRun:
    """One run of ``kvcli map``.

    Attributes:
        options, request: as of ``ask``; every word is a file.
        output: the file of answers; ``None`` for stdout.
        ordered: lines are in the order of the documents and questions.
        retry_failed: failures of earlier runs are asked again.
        tables: files of ``--table``.
        with_quotes: with a sentence and its page for each field.
        workers: makes them, once there is something to ask; gets the settings and what is asked.
    """

    options: RunOptions
    request: Request
    output: Path | None
    ordered: bool
    retry_failed: bool
    tables: tuple[Path, ...]
    with_quotes: bool
    workers: Callable[[RunOptions, Settings, ModelSource], Any]

    def find(self) -> tuple[Settings, ModelSource, Corpus]:
        """The settings, the model's files and the documents of the run."""
        options, questions = self.options, self.request.questions
        check(options)
        for path in self.tables:
            table.check(path)
        files, notes = find_files(self.request.files, options.reading)
        own = settings(options, likely_sources=False, field_quotes=self.with_quotes)
        source, identity = resolve(options, own, alone=len(questions) == 1)
        with interruptible("looking at the documents"):
            found = corpus(files, notes, questions, identity, _web(options, files))
        for note in found.notes:
            terminal.note("corpus", note, quiet=options.quiet)
        return own, source, found

    def run(self) -> None:
        """Ask what is not answered yet. Raises ``typer.Exit`` with 8 if a document failed."""
        own, source, found = self.find()
        file = None if self.output is None else AnswersFile(self.output)
        lines = _Lines(self, found, file)
        try:
            self._ask(own, source, found, lines)
        finally:
            lines.close()
        failed = lines.failed_files
        if failed:
            what = terminal.plural(len(found.tasks) + len(found.unreadable), "document")
            hint = "" if self.output is None else "; to ask again: the same command with --retry-failed"
            terminal.warn(f"{len(failed):,} of {what} failed{hint}")
            raise typer.Exit(PARTLY_FAILED)

    def plan(self, workers: int) -> None:
        """Print what is left to do and what it takes; asks nothing."""
        from kvcli.cli.views import map_plan

        own, source, found = self.find()
        file = AnswersFile(self.output) if self.output is not None and self.output.exists() else None
        lines = _Lines(self, found, file)
        tasks = lines.left()
        if file is not None:
            file.close()
        terminal.note("corpus", lines.summary(tasks), quiet=self.options.quiet)
        for each in found.unreadable:
            terminal.error(each.error)
        with interruptible("counting tokens"):
            map_plan.show(tasks, own, source, workers, quiet=self.options.quiet)

    def _ask(self, own: Settings, source: ModelSource, found: Corpus, lines: _Lines) -> None:
        quiet, tasks, total = self.options.quiet, lines.left(), len(found.tasks) + len(found.unreadable)
        terminal.note("corpus", lines.summary(tasks), quiet=quiet)
        lines.unreadable()
        if tasks:
            with self.workers(self.options, own, source) as workers, ProgressDisplay(quiet=quiet) as display:
                drive(workers, tasks, lines.see, total=total, failed=len(lines.failed_files), show=display.see)


class _Lines:
    """The lines of a run: in a file as they come and sorted at the end, or on stdout."""

    def __init__(self, run: MapRun, found: Corpus, file: AnswersFile | None) -> None:
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

    def left(self) -> list[Task]:
        """The tasks with the questions that have no line yet."""
        if self.file is None:
            return list(self.found.tasks)
        done = [task.without(key for key in task.keys if key in self.file) for task in self.found.tasks]
        return [task for task in done if task.questions and task.failure_key not in self.file]

    def summary(self, tasks: Sequence[Task]) -> str:
        total = len(self.found.tasks) + len(self.found.unreadable)
        questions = terminal.plural(len({q.text for task in self.found.tasks for q in task.questions}), "question")
        done = total - len(tasks) - len(self.found.unreadable)
        parts = [terminal.plural(total, "document"), questions]
        return " · ".join([*parts, *([f"{done:,} done before"] if done else [])])

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


# --- kvcli ask --each ---------------------------------------------------------------------------------


def ask_each(options: RunOptions, request: Request, writer: AnswerWriter) -> None:
    """Answer every question about each file by itself; the model is loaded once.

    Raises ``typer.Exit`` with 8 if a file failed, with 10 if ``--exit-status`` asks and an answer is not grounded.
    """
    from kvcli.corpus.worker import LocalWorkers, Worker

    check(options)
    files, notes = find_files(request.files, options.reading)
    likely = True if writer.as_json else None
    own = settings(options, likely_sources=likely)
    found = corpus(files, notes, request.questions, "", _web(options, files))
    for note in found.notes:
        terminal.note("file", note, quiet=options.quiet)
    printed = _Printed(options, writer, len(found.tasks) + len(found.unreadable), several=len(request.questions) > 1)
    for each in found.unreadable:
        printed.report(each.name, each.error)
    if found.tasks:
        loaded = open_model(options)
        printed.loaded = loaded
        workers = LocalWorkers(Worker(loaded.model, own))
        try:
            drive(workers, found.tasks, printed.see, total=printed.total, failed=0, show=None)
        finally:
            printed.end_progress()
    answer_loop.finish(len(printed.bad), printed.total, "file", printed.without_citation, options)


class _Printed:
    """Prints the answers of ``ask --each`` as they are generated."""

    loaded: LoadedModel | None = None
    unlogged = False

    def __init__(self, options: RunOptions, writer: AnswerWriter, total: int, *, several: bool) -> None:
        self.options, self.writer, self.total, self.several = options, writer, total, several
        self.bad = set[str]()
        self.begun = self.without_citation = 0
        self._display: ProgressDisplay | None = None

    def report(self, name: str, error: Exception, **which: Any) -> None:
        """Print the error of a file or of one question about it."""
        self.bad.add(name)
        answer_loop.report_failure(self.writer, {"file": name, **which}, error)

    def end_progress(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display.summary()
            self._display = None

    def see(self, item: Item) -> None:
        from kvcli.corpus.worker import Answered, Asked, Failed, Opened

        quiet = self.options.quiet
        if isinstance(item, Opened):
            self.begun += 1
            title = f"[{self.begun}/{self.total}] {terminal.title(item.document)} · {item.tokens:,} tokens"
            terminal.note("file", title, quiet=quiet)
            for text in item.document.warnings:
                terminal.warn(text, quiet=quiet)
            self._display = ProgressDisplay(quiet=quiet)
        elif isinstance(item, Asked):
            self.end_progress()
            heads = [item.task.name] if self.total > 1 else []
            self.writer.heading = " · ".join([*heads, *([item.question.text] if self.several else [])])
            if not quiet:
                row.start("answer")
        elif isinstance(item, Token):
            self.writer.write(item.text)
        elif isinstance(item, Answered):
            self._answered(item)
        elif isinstance(item, Failed):
            self.end_progress()
            question = item.question
            which = {} if question is None else {"question": question.text}
            which |= {} if question is None or question.id is None else {"id": question.id}
            self.report(item.task.name, item.error, **which)
        elif isinstance(item, Notice):
            terminal.warn(item.text, quiet=quiet)
        elif self._display is not None:
            self._display.see(item)  # type: ignore[arg-type]

    def _answered(self, item: Answered) -> None:
        found, loaded, options = item.found, self.loaded, self.options
        assert found is not None
        assert loaded is not None
        document, context, spec = found.document, found.context, loaded.model.spec
        report = Report(
            document=document,
            tokens=context.tokens,
            kv=dict(item.record["kv"]),
            cache=context.cache,
            reused=context.reused,
            load_s=loaded.load_s,
            reuse_s=context.reuse_s,
            prefill_s=context.prefill_s,
            planned_bytes=context.plan.total,
            baseline_bytes=loaded.baseline_bytes,
            peak_bytes=process_memory.peak(spec.device),
            reread=() if found.reread is None else found.reread.passages,
            reread_s=0.0 if found.reread is None else found.reread.seconds,
            from_quotes=bool(item.record["from_quotes"]),
            cited=found.cited,
            quotes=found.quotes,
            model=loaded.facts,
            sampling=item.record["sampling"],
            warnings=tuple(item.record["warnings"]),
        )
        if options.cite == "strict":
            missing = found.quotes is not None and not found.quotes.found
            self.without_citation += missing or not found.cited.grounded
        record = {**report.answer(item.question, found.answer), "key": item.record["key"], "file": item.task.name}
        text = found.answer.text
        answer_loop.print_answer(self.writer, record, text, document, item.question.text, found.cited, found.quotes)
        problem = answer_loop.log(options, (item.task.name,), record, found.cited, found.quotes)
        if problem and not self.unlogged:
            terminal.warn(problem, quiet=options.quiet)
        self.unlogged = bool(problem)
        for remark in item.record["warnings"][len(document.warnings) :]:
            terminal.warn(remark, quiet=options.quiet)
        terminal.note("read", report.reading(), quiet=options.quiet)
        for label, line in report.statistics(found.answer) if options.stats else ():
            terminal.note(label, line)
