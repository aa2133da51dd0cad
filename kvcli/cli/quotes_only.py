"""``kvcli ask --quotes-only``: the sentences that may answer, looked up by words.

Reads nothing, and loads no model but the encoder of ``--rerank``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from kvcli.cli.inputs import document_cache, open_documents
from kvcli.cli.request import standard_input
from kvcli.cli.signals import interruptible
from kvcli.cli.views import citations, terminal
from kvcli.cli.views import quotes as quote_lines
from kvcli.corpus.record import quotes_json
from kvcli.errors import SCHEMA, UsageError

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.cli.output import AnswerWriter
    from kvcli.cli.request import Request
    from kvcli.corpus.task import Question
    from kvcli.documents import Document


def print_quotes(
    options: RunOptions, request: Request, writer: AnswerWriter, *, stdin_is_questions: bool, each: bool
) -> None:
    """Print the quotes for every question about all files together, or about each file.

    Raises:
        UsageError: there is no document.
        typer.Exit: nothing in a text seems to answer, and ``--exit-status`` asks.
    """
    options.check()
    with interruptible("waiting for standard input"):
        stdin = standard_input(request, stdin_is_questions=stdin_is_questions, quiet=options.quiet)
    missing = 0
    for files in [(name,) for name in request.files] if each else [request.files]:
        document = open_documents(options, files, stdin).document
        if document is None:
            raise UsageError("--quotes-only needs a document to quote from", 'kvcli ask FILE --quotes-only "…"')
        for warning in document.warnings:
            terminal.warn(warning, quiet=options.quiet)
        with interruptible("looking up quotes"):
            missing += _print(options, document, request.questions, writer)
    if missing and options.exit_status:
        raise typer.Exit(citations.UNGROUNDED)


def _print(options: RunOptions, document: Document, questions: Sequence[Question], writer: AnswerWriter) -> int:
    """Returns for how many questions nothing in the text seems to answer."""
    from kvcli.retrieval.quotes import QuoteSearch

    missing, kept = 0, document_cache(options)
    for question in questions:
        search = QuoteSearch(document, question.text, count=options.quotes, kept=kept)
        if options.rerank is not None:
            from kvcli.models.encoder import load_encoder

            search.rank_by_encoder(load_encoder(options.rerank, device=options.device))
        found = search.quotes()
        missing += not found.found
        shown = writer.path is None and terminal.is_terminal(sys.stdout)
        links = sys.stdout if shown else None
        lines = quote_lines.lines(document, found.quotes, question.text, bold=shown, links=links)
        if not found.found:
            nearest = f" The nearest {'is' if len(lines) == 1 else 'are'} below." if lines else ""
            terminal.note("text", f"{quote_lines.NOTHING}.{nearest}", quiet=options.quiet)
        record = {
            "schema": SCHEMA,
            **({"id": question.id} if question.id is not None else {}),
            "question": question.text,
            **quotes_json(found),
            "document": {"files": list(document.files), "pages": document.pages, "sha256": document.sha256},
            "warnings": list(document.warnings),
        }
        writer.lines(lines, record)
    return missing
