"""Answer every question of a run: prefill if needed, stream the answer, cite, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from kvcli.cli import question_log
from kvcli.cli.exit_codes import PARTLY_FAILED, error_object, to_kvcli_error
from kvcli.cli.inputs import open_documents
from kvcli.cli.report import Report
from kvcli.cli.request import standard_input
from kvcli.cli.setup import LoadedModel, OpenRun, banner, check, open_model, open_run, prefill_with_progress
from kvcli.cli.signals import INTERRUPTS, Interrupted, exit_code_for, interruptible
from kvcli.cli.views import citations, terminal
from kvcli.cli.views import quotes as quote_lines
from kvcli.cli.views.activity import row
from kvcli.errors import TooLongError
from kvcli.events import Answer, Quotes, Reread, Token
from kvcli.utils import process_memory
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.cli.output import AnswerWriter
    from kvcli.cli.request import Question, Request
    from kvcli.documents.quotes import QuoteIndex
    from kvcli.pipeline import Citations, DocumentContext


def open_loop(options: RunOptions, request: Request, writer: AnswerWriter, *, stdin_is_questions: bool) -> AnswerLoop:
    """Read the input and load the model, to answer every question about all files together."""
    check(options)
    with interruptible("waiting for standard input"):
        stdin = standard_input(request, stdin_is_questions=stdin_is_questions, quiet=options.quiet)
    inputs = open_documents(options, request.files, stdin)
    run = open_run(inputs, open_model(inputs.options, inputs.saved, inputs), questions=len(request.questions))
    banner(run, 0 if run.source is None else len(run.source.ids), run.recipe)
    return AnswerLoop(run, request.questions, writer)


def answer_each(options: RunOptions, request: Request, writer: AnswerWriter) -> None:
    """Answer every question about each file by itself; the model is loaded once. Raises as :func:`finish`."""
    check(options)
    loaded = open_model(options)
    files, failed, without = request.files, 0, 0
    for n, name in enumerate(files, 1):
        terminal.note("file", f"[{n}/{len(files)}] {name}", quiet=options.quiet)
        try:
            bad, ungrounded = _answer_file(options, request, writer, loaded, name)
            failed, without = failed + bad, without + ungrounded
        except (typer.Exit, Interrupted, BrokenPipeError):
            raise
        except Exception as problem:
            failed += 1
            _report_failure(writer, {"file": name}, problem)
    finish(failed, len(files), "file", without, options)


def _answer_file(
    options: RunOptions, request: Request, writer: AnswerWriter, loaded: LoadedModel, name: str
) -> tuple[int, int]:
    run = open_run(open_documents(options, (name,)), loaded, questions=len(request.questions))
    banner(run, 0 if run.source is None else len(run.source.ids), run.recipe)
    loop = AnswerLoop(run, request.questions, writer, name if len(request.files) > 1 else "")
    return int(bool(loop.run(batch=True))), loop.without_citation


def finish(failed: int, total: int, what: str, without_citation: int, options: RunOptions) -> None:
    """Raise ``typer.Exit`` with the exit code of the run if an item failed or an answer is not grounded."""
    if failed:
        terminal.warn(f"{failed} of {total} {what}s failed")
        raise typer.Exit(PARTLY_FAILED)
    if options.exit_status and without_citation:
        raise typer.Exit(citations.UNGROUNDED)


def _report_failure(writer: AnswerWriter, which: dict[str, Any], problem: Exception) -> None:
    """Report the error of one item of a batch; the next one is asked."""
    error = to_kvcli_error(problem)
    writer.abandon()
    if writer.as_json:
        writer.end("", {**error_object(error), **which})
    terminal.error(error)


def _refuse_cut(answer: Answer, stopped: BaseException | None) -> NoReturn:
    """Raise for an answer that is not of the form that was asked for; nothing of it is printed."""
    if stopped is not None:
        raise Interrupted("interrupted before the answer was complete", cause=stopped)
    made = answer.completion_tokens
    why = "kept repeating itself" if answer.stopped_repeating else "was cut"
    raise TooLongError(f"the answer {why} after {made:,} tokens, before it was complete", f"-n {2 * made}")


class AnswerLoop:
    """The questions of one run about one document.

    Args:
        run: documents, model and recipe.
        questions: in order.
        writer: where answers go.
        name: of the document, if there are several.

    Attributes:
        without_citation: answers without a verified quote or about something that no sentence of the text seems to
            answer, counted with ``--cite strict``.
    """

    def __init__(self, run: OpenRun, questions: Sequence[Question], writer: AnswerWriter, name: str = "") -> None:
        self.name = name
        self.runs, self.questions, self.writer = run, questions, writer
        self.without_citation = 0
        self.context: DocumentContext | None = None
        self._index: QuoteIndex | None = None

    def run(self, *, batch: bool) -> int:
        """Answer all questions; returns how many failed."""
        run, options, failed = self.runs, self.runs.options, 0
        for n, question in enumerate(self.questions, 1):
            self.writer.heading = " · ".join(
                [*([self.name] if self.name else []), *([question.text] if len(self.questions) > 1 else [])]
            )
            if len(self.questions) > 1:
                terminal.note("question", f"[{n}/{len(self.questions)}] {question.text}", quiet=options.quiet)
            try:
                passages, context = self._passages(question), self._reusable(question)
                if context is None:
                    self.context = None  # free its memory first
                    context = self.context = prefill_with_progress(
                        run,
                        question=question.text,
                        query_aware=options.query_aware and run.source is not None,
                        max_tokens=options.max_tokens,
                        passages=passages,
                    )
                self._answer(question, context, passages, left=len(self.questions) - n)
            except (typer.Exit, Interrupted, BrokenPipeError):
                raise
            except Exception as problem:
                if not batch:
                    raise
                failed += 1
                name = {} if question.id is None else {"id": question.id}
                _report_failure(self.writer, {**name, "question": question.text}, problem)
        return failed

    def _reusable(self, question: Question) -> DocumentContext | None:
        """The context of the previous question, if it can answer this one too."""
        run, options = self.runs, self.runs.options
        if self.context is None or (options.query_aware and run.source is not None):
            return None
        return self.context if run.pipeline.fits(self.context, question.text, max_tokens=options.max_tokens) else None

    def _passages(self, question: Question) -> int:
        """How many passages are read again before the answer."""
        run, passages = self.runs, self.runs.options.passages
        if passages is not None:
            return passages
        ids = run.pipeline.prompt.question(question.text, document=run.source is not None)
        return run.pipeline.default_passages(run.source, run.recipe, ids)

    def _answer(self, question: Question, context: DocumentContext, passages: int, *, left: int) -> None:
        from kvcli.engine.sampling import Sampling
        from kvcli.planning import speed_history

        run, options = self.runs, self.runs.options
        remarks: list[str] = []
        sampling = Sampling(**options.sampling)
        answer, reread, quotes, stopped = self._generate(context, question.text, sampling, passages)
        if options.answer_format is not None and answer.finish_reason != "stop":
            _refuse_cut(answer, stopped)
        spec = run.model.spec
        speed_history.record(spec, context.recipe, said=answer.completion_tokens - 1, said_s=answer.decode_s)
        self._check_length(answer, remarks)
        start = time.perf_counter()
        cited = self._cite(context, question.text, answer)
        if options.cite == "strict":
            missing = quotes is not None and not quotes.found
            self.without_citation += missing or not cited.grounded
            if not cited.grounded:
                remarks.append("the answer is not grounded: none of its quotes is in the document")
        run.warnings.extend(text for text in remarks if text not in run.warnings)
        settings = {**asdict(sampling), "max_tokens": options.max_tokens, "stop": list(options.stop)}
        report = Report.of(
            run,
            context,
            reread=reread,
            cited=cited,
            quotes=quotes,
            cite_s=time.perf_counter() - start,
            sampling=settings,
            peak_bytes=process_memory.peak(spec.device),
        )
        links = sys.stdout if self.writer.path is None and not self.writer.as_json else None
        notes = citations.lines(run.document, cited, links) if run.document else []
        first: list[str] = []
        if run.document and quotes is not None and (left_out := quote_lines.uncited(quotes, cited)):
            shown = self.writer.path is None and terminal.is_terminal(sys.stdout)
            lines = [quote_lines.heading(quotes)]
            lines += quote_lines.lines(run.document, left_out, question.text, bold=shown, links=links)
            covered = any(quote.supports for quote in quotes.quotes)
            if shown and not self.writer.stream and not covered:
                first = lines  # pipes and files begin with the answer
            else:
                notes += lines
        record = report.answer(question, answer)
        self.writer.end(answer.text, record, marks=citations.marks(cited), notes=notes, first=first)
        if options.log and options.cache:
            self._log(record, cited, quotes)
        for remark in remarks:
            terminal.warn(remark, quiet=options.quiet)
        self._print_summary(report, answer, left)
        if stopped is not None:
            raise typer.Exit(exit_code_for(stopped))

    def _generate(
        self, context: DocumentContext, question: str, sampling: Any, passages: int
    ) -> tuple[Answer, Reread | None, Quotes | None, BaseException | None]:
        """Stream the answer. If it is interrupted, returns the partial answer and the exception."""
        run, options = self.runs, self.runs.options
        reread: Reread | None = None
        quotes: Quotes | None = None
        if not options.quiet:
            row.start("answer")
        start = first = time.perf_counter()
        parts, made = list[str](), 0
        events = run.pipeline.ask(
            context,
            question,
            sampling=sampling,
            max_tokens=options.max_tokens,
            stop=options.stop,
            passages=passages,
            allow_repetition=options.allow_repetition,
            quotes=options.quotes if options.cite != "off" else 0,
            history=options.history,
            earlier=[question for question, _ in options.history[-1:]],
            from_quotes=options.from_quotes,
            answer_format=options.answer_format,
        )
        try:
            for event in events:
                if isinstance(event, Answer):
                    return event, reread, quotes, None
                if isinstance(event, Quotes):
                    if quotes is None and not event.found:
                        terminal.note("text", f"{quote_lines.NOTHING} seems to answer", quiet=options.quiet)
                    quotes = event
                    start = first = time.perf_counter() if not made else first
                if isinstance(event, Reread):
                    reread = event
                    if event.passages:
                        count = terminal.plural(len(event.passages), "sentence" if event.alone else "passage")
                        alone = ", and nothing else" if event.alone else ""
                        text = f"{count}, {event.characters:,} characters{alone} ({event.seconds:.1f} s)"
                        terminal.note("reread", text, quiet=options.quiet)
                    start = first = time.perf_counter()
                if isinstance(event, Token):
                    first = first if made else time.perf_counter()
                    made += event.id >= 0
                    parts.append(event.text)
                    self.writer.write(event.text)
        except INTERRUPTS as stop:
            text, now = "".join(parts), time.perf_counter()
            length = len(run.pipeline.prompt.question(question, document=run.source is not None))
            return Answer(text, "interrupted", length, made, first - start, now - first), reread, quotes, stop
        raise RuntimeError("the engine ended without an answer")

    def _check_length(self, answer: Answer, remarks: list[str]) -> None:
        limit = self.runs.options.max_tokens
        made = answer.completion_tokens
        if answer.stopped_repeating:
            remarks.append(
                f"the answer started repeating itself and was stopped after {made:,} tokens;"
                f" try --repeat-penalty 1.1 or a larger model, or -n {limit} to let it continue"
            )
        elif answer.finish_reason == "length":
            short = made >= limit
            why = "" if short else ": the model's context is full"
            hint = f"; try -n {2 * made}" if short else ""
            remarks.append(f"the answer was truncated at {made:,} tokens{why}{hint}")

    def _cite(self, context: DocumentContext, question: str, answer: Answer) -> Citations:
        from kvcli.documents.quotes import QuoteIndex
        from kvcli.pipeline import Citations

        options, cited = self.runs.options, Citations()
        if options.cite != "off" and context.document is not None:
            if self._index is None:
                self._index = QuoteIndex(context.document)
            likely = True if self.writer.as_json else None
            likely = False if answer.finish_reason == "interrupted" else likely
            with interruptible("looking for quotes"):
                cited = self.runs.pipeline.cite(
                    context, question, answer.text, likely_sources=likely, index=self._index
                )
        return cited

    def _log(self, record: dict[str, Any], cited: Citations, quotes: Quotes | None) -> None:
        """Log the answer, with the places that ``kvcli open`` opens by number."""
        run, places = self.runs, list[question_log.Place]()
        for c in cited.quotes:
            at = c.span
            places.append(question_log.Place(at.file if at else "", at.page if at else None, c.line, c.quote))
        for q in quote_lines.uncited(quotes, cited) if quotes is not None else ():
            places.append(question_log.Place(q.source, q.page, q.line, q.text))
        named = run.document.files if run.document else ()
        if problem := question_log.add(run.options, named, record, places, run.options.previous):
            run.warn(problem)

    def _print_summary(self, report: Report, answer: Answer, left: int) -> None:
        """After the answer: tokens read, kept and dropped, and statistics if asked for."""
        options, quiet = self.runs.options, self.runs.options.quiet
        if self.runs.document:
            terminal.note("read", report.reading(), quiet=quiet)
        if answer.finish_reason == "interrupted":
            made = answer.completion_tokens
            kept = f"after {terminal.plural(made, 'token')}" if made else "before the answer began"
            skipped = f"; {terminal.plural(left, 'question')} not asked" if left else ""
            terminal.note("stopped", f"{kept}{skipped}", quiet=quiet)
        if options.stats:
            for label, text in report.statistics(answer):
                terminal.note(label, text)
        if options.verbose:
            spec = self.runs.model.spec
            mapped = f" · decodes with {format_bytes(spec.mapped_bytes)} of other weights" if spec.mapped_bytes else ""
            terminal.note("model", f"fingerprint {spec.fingerprint}{mapped}", quiet=quiet)
        if self.writer.path is not None:
            terminal.note("answer", f"written to {self.writer.path}", quiet=quiet)
