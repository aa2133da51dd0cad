"""``kvcli ask @NAME``: from sentences of the best files alone, or from passages of them after the best one was read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcli.cli import answer_loop
from kvcli.cli.from_library import FromLibrary
from kvcli.cli.inputs import Inputs
from kvcli.cli.model_loading import LoadedModel, check, open_model
from kvcli.cli.setup import OpenRun, open_run
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.corpus.library import Library
from kvcli.models import defaults

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.cli.output import AnswerWriter
    from kvcli.cli.request import Request
    from kvcli.documents import Document

TOP = 4
"""Passages that are read again before an answer."""


def answer(options: RunOptions, name: str, request: Request, writer: AnswerWriter, top: int) -> None:
    """Answer every question about a library. Raises as :func:`kvcli.cli.answer_loop.finish`."""
    check(options)
    library, quiet = Library.find(name), options.quiet
    changed = [entry.path for entry in library.entries.values() if entry.changed]
    if changed:
        what = terminal.plural(len(changed), "file")
        terminal.warn(f"{what} changed or gone since, {changed[0]} first; kvcli library add {name} …", quiet=quiet)
    terminal.note("library", f"@{name} · {terminal.plural(len(library.entries), 'file')}", quiet=quiet)
    loaded = open_model(options)
    failed = without = 0
    for question in request.questions:
        with interruptible("looking through the library"):
            found = library.search(question.text, top)
            whole, quotes = found.joined()
        run = _quoting(options, whole, loaded, question.text)
        passages = None
        if run is None:
            run = open_run(Inputs(options, found.best, None, 0.0), loaded, questions=0)
            passages = FromLibrary(found.passages(), whole, quotes)
        title = question.text if len(request.questions) > 1 else ""
        loop = answer_loop.AnswerLoop(run, [question], writer, library=passages, named=(f"@{name}",), title=title)
        loop.banner()
        if passages is not None:
            named = terminal.plural(len(whole.files), "file")
            terminal.note("reread", f"{terminal.plural(len(found.hits), 'passage')} of {named}", quiet=quiet)
        failed += loop.run(batch=request.batch)
        without += loop.without_citation
    answer_loop.finish(failed, len(request.questions), "question", without, options)


def _quoting(options: RunOptions, whole: Document, loaded: LoadedModel, question: str) -> OpenRun | None:
    """All files of the hits as one document, if a question about it is answered from its sentences alone."""
    by_default = options.by_quotes is None and loaded.model.name in defaults.ASKED_BY_EXAMPLES
    if not (by_default or options.by_quotes):
        return None  # before several files are cut into tokens
    run = open_run(Inputs(options, whole, None, 0.0), loaded, questions=0)
    assert run.source is not None
    if by_default and not run.pipeline.asks_by_examples(run.source, question):
        return None
    return None if run.pipeline.unread(run.source, question, run.recipe) is None else run
