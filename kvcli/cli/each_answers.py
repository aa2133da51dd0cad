"""``kvcli ask --each``: every question about each file by itself; the model is loaded once."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from kvcli.cli import inputs
from kvcli.cli.answer_loop import AnswerLoop, finish, report_failure
from kvcli.cli.model_loading import check, open_model
from kvcli.cli.setup import open_run
from kvcli.cli.signals import Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.corpus.task import corpus, find_files

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.cli.output import AnswerWriter
    from kvcli.cli.request import Request


def answer(options: RunOptions, request: Request, writer: AnswerWriter) -> None:
    """Answer every question about each file. Raises as :func:`kvcli.cli.answer_loop.finish`."""
    check(options)
    files, notes = find_files(request.files, options.reading)
    kept, quiet = inputs.document_cache(options), options.quiet
    found = corpus(files, notes, request.questions, "", inputs.web(options, files, kept))
    for note in found.notes:
        terminal.note("file", note, quiet=quiet)
    for each in found.unreadable:
        report_failure(writer, {"file": each.name}, each.error)
    bad, without, total = len(found.unreadable), 0, len(found.tasks) + len(found.unreadable)
    if found.tasks:
        from kvcli.corpus.worker import read_task

        loaded = open_model(options)
    for number, task in enumerate(found.tasks, 1):
        try:
            start = perf_counter()
            with interruptible(f"reading {task.name}"):
                document = read_task(task, options.reading, kept)
            given = inputs.Inputs(options, document, None, perf_counter() - start)
            run = open_run(given, loaded, questions=1 if task.alone else 0, notes=number == 1)
        except (Interrupted, BrokenPipeError):
            raise
        except Exception as problem:
            bad += 1
            report_failure(writer, {"file": task.name}, problem)
            continue
        title = f"[{number}/{total}] {terminal.title(document)} · {run.tokens:,} tokens"
        terminal.note("file", title, quiet=quiet)
        for text in document.warnings if number > 1 else ():
            terminal.warn(text, quiet=quiet)
        loop = AnswerLoop(run, task.questions, writer, task=task, title=task.name if total > 1 else "")
        bad += loop.run(batch=True) > 0
        without += loop.without_citation
    finish(bad, total, "file", without, options)
