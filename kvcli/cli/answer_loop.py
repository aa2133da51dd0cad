"""Answer every question of a run: prefill if needed, stream the answer, cite, report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from kvcli.cli import question_log
from kvcli.cli.exit_codes import PARTLY_FAILED, to_kvcli_error
from kvcli.cli.report import Report, reading
from kvcli.cli.setup import OpenRun, banner, keeping, prefill_with_progress, show_quotes
from kvcli.cli.signals import INTERRUPTS, Interrupted, exit_code_for, interruptible
from kvcli.cli.views import citations, terminal
from kvcli.cli.views import quotes as quote_lines
from kvcli.cli.views.activity import row
from kvcli.corpus.record import cut_short, length_remarks
from kvcli.errors import UsageError
from kvcli.events import Answer, Quotes, Reread, Token
from kvcli.utils import process_memory
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.cli.from_library import FromLibrary
    from kvcli.cli.options import RunOptions
    from kvcli.cli.output import AnswerWriter
    from kvcli.corpus.parts import PartAnswer, TextPart
    from kvcli.corpus.task import DocumentTask, Question
    from kvcli.documents import Document
    from kvcli.documents.quotes import QuoteIndex
    from kvcli.pipeline import Citations, DocumentContext


def finish(failed: int, total: int, what: str, without_citation: int, options: RunOptions) -> None:
    """Raise ``typer.Exit`` with the exit code of the run if an item failed or an answer is not grounded."""
    if failed:
        terminal.warn(f"{failed} of {total} {what}s failed")
        raise typer.Exit(PARTLY_FAILED)
    if options.exit_status and without_citation:
        raise typer.Exit(citations.UNGROUNDED)


def report_failure(writer: AnswerWriter, which: dict[str, Any], problem: Exception) -> None:
    """Report the error of one item of a batch; the next one is asked."""
    error = to_kvcli_error(problem)
    writer.abandon()
    if writer.as_json:
        writer.end("", {**error.to_json(), **which})
    terminal.error(error)


class AnswerLoop:
    """The questions of one run about one document.

    Args:
        run: documents, model and recipe.
        questions: in order.
        writer: where answers go.
        library: what a library adds to the only question.
        named: what the questions are about, for the log; by default the files.
        task: the file that ``--each`` asks about: its name and keys belong to the records.
        title: what each heading begins with.

    Attributes:
        without_citation: answers without a verified quote or about something that no sentence of the text seems to
            answer, counted with ``--cite strict``.
    """

    def __init__(
        self,
        run: OpenRun,
        questions: Sequence[Question],
        writer: AnswerWriter,
        *,
        library: FromLibrary | None = None,
        named: tuple[str, ...] = (),
        task: DocumentTask | None = None,
        title: str = "",
    ) -> None:
        self.runs, self.questions, self.writer = run, questions, writer
        self.library, self.named, self.task, self.title = library, named, task, title
        if writer.stream is None:
            writer.stream = not self._waits
        self.without_citation = 0
        self.context: DocumentContext | None = None
        self._says_recipe = False
        self._index: QuoteIndex | None = None
        self._parts: list[TextPart] = []
        self._part_answers: list[PartAnswer] = []

    @property
    def _waits(self) -> bool:
        """Whether quotes may have to stand before an answer: the model is often wrong, or writes one line from them."""
        from kvcli.models import defaults

        options = self.runs.options
        quoting = options.cite and options.quotes > 0 and (self.runs.document or self.library) is not None
        return quoting and (bool(options.from_quotes) or self.runs.model.name in defaults.ASKED_BY_EXAMPLES)

    def run(self, *, batch: bool) -> int:
        """Answer all questions; returns how many failed."""
        run, options, failed = self.runs, self.runs.options, 0
        for n, question in enumerate(self.questions, 1):
            several = len(self.questions) > 1
            self.writer.heading = " · ".join(filter(None, (self.title, question.text if several else "")))
            if several and self.task is None:
                terminal.note("question", f"[{n}/{len(self.questions)}] {question.text}", quiet=options.quiet)
            try:
                self._show_quotes(question.text)
                passages, probe = self._passages(question), self._probe(question)
                context = None
                if run.source is not None and self.library is None:
                    earlier = [before for before, _ in options.history[-1:]]
                    context = options.unread(run.pipeline, run.source, question.text, run.recipe, earlier)
                context = context or self._reusable(probe)
                if context is None:
                    self.context = None  # free its memory first
                    if self._says_recipe:
                        terminal.note("recipe", keeping(run), quiet=options.quiet)
                        self._says_recipe = False
                    context = self.context = prefill_with_progress(
                        run,
                        question=probe,
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
                which = {"file": self.task and self.task.name, "id": question.id, "question": question.text}
                report_failure(self.writer, {k: v for k, v in which.items() if v is not None}, problem)
        return failed

    def _show_quotes(self, question: str) -> None:
        """Show the likeliest sentences by words until there is an answer."""
        if self.writer.as_json or self.writer.path is not None:
            return
        if self.library is not None:
            quote_lines.keep_above(self.library.document, self.library.quotes, question)
        elif self.runs.document is not None:
            show_quotes(self.runs.options, self.runs.document, question)

    def _probe(self, question: Question) -> str | list[int]:
        """The question for which prefill leaves room: its text, or its ids with the longest part."""
        run, over = self.runs, self.runs.options.over
        if self.library is not None and not run.recipe.policy.query_aware:
            return run.pipeline.prompt.question(question.text, passages=self.library.passages)
        if over is None:
            return question.text
        if run.document is None:
            raise UsageError("--over cuts a document, and none was given", 'kvcli ask FILE "…" --over chapters')
        from kvcli.corpus import parts

        if not self._parts:
            with interruptible("cutting the document"):
                self._parts = parts.cut(run.document, over, run.pipeline.prompt, parts.part_tokens(run.pipeline))
        if run.recipe.policy.query_aware:
            return question.text
        return parts.longest_question(run.pipeline, run.document, self._parts, question.text)

    def banner(self) -> None:
        """Say which document and model, and what is kept if the document is certainly read; else before it is."""
        run, asked = self.runs, [question.text for question in self.questions]
        if run.source is not None and not run.source.pictures and self.library is None:
            self._says_recipe = run.options.skips_prefill(run.model.spec, run.recipe, run.tokens, asked)
        banner(run, reads=not self._says_recipe)

    def _reusable(self, probe: str | list[int]) -> DocumentContext | None:
        """The context of the previous question, if it can answer this one too."""
        run, options = self.runs, self.runs.options
        if self.context is None or (options.query_aware and run.source is not None):
            return None
        return self.context if run.pipeline.fits(self.context, probe, max_tokens=options.max_tokens) else None

    def _passages(self, question: Question) -> int:
        """How many passages are read again before the answer."""
        run, passages = self.runs, self.runs.options.passages
        if run.options.over or self.library is not None:
            return 0
        if passages is not None:
            return passages
        ids = run.prompt.question(question.text, document=run.source is not None)
        return run.pipeline.default_passages(run.source, run.recipe, ids)

    def _answer(self, question: Question, context: DocumentContext, passages: int, *, left: int) -> None:
        from kvcli.engine.sampling import Sampling
        from kvcli.planning import speed_history

        run, options = self.runs, self.runs.options
        remarks: list[str] = []
        sampling = Sampling(**options.sampling)
        answer, reread, quotes, stopped = self._generate(context, question.text, sampling, passages)
        document = self.library.document if self.library else run.document
        if self.library is not None:
            quotes = self.library.quotes_for(question.text, answer.text) if options.quotes and options.cite else None
        if options.answer_format is not None and answer.finish_reason != "stop":
            if stopped is not None:
                raise Interrupted("interrupted before the answer was complete", cause=stopped)
            raise cut_short(answer)
        spec = run.model.spec
        speed_history.record(spec, context.recipe, said=answer.completion_tokens - 1, said_s=answer.decode_s)
        remarks += length_remarks(answer, options.max_tokens)
        start = time.perf_counter()
        cited = self._cite(context, question.text, answer)
        if options.strict:
            missing = quotes is not None and not quotes.found
            share = cited.covered(answer.text)
            uncovered = options.exit_status and share < options.covered
            self.without_citation += missing or not cited.grounded or uncovered
            if uncovered and cited.grounded:
                remarks.append(
                    f"{share:.0%} of the answer is in the text word for word, and --covered asks for"
                    f" {options.covered:.0%}"
                )
            if not cited.grounded:
                remarks.append("the answer is not grounded: none of its quotes is in the document")
        run.warnings.extend(text for text in remarks if text not in run.warnings)
        peak, cite_s = process_memory.peak(spec.device), time.perf_counter() - start
        report = Report(run, context, document, cited, quotes, reread, cite_s, peak)
        record = report.answer(question, answer)
        if options.over is not None:
            record["parts"] = self._parts_json(context, question.text)
        if self.task is not None:
            key = self.task.keys[self.task.questions.index(question)]
            record |= {"key": key, "file": self.task.name}
        text = answer.text if options.answer_format is not None else cited.text or answer.text
        row.keep_above(None)
        self.writer.answer(text, record, document, question.text, cited, quotes)
        named = self.named or tuple(x for x in (document.files if document else ()) if x not in options.images)
        if options.log and options.cache:
            uncited = () if quotes is None else quote_lines.uncited(quotes, cited)
            places = question_log.places(cited.quotes, uncited)
            if problem := question_log.add(options, named, record, places, options.previous):
                self.runs.warn(problem)
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
        if self.writer.stream and options.cite and context.document is not None and options.answer_format is None:
            from kvcli.documents.cited_answer import CitedAnswer

            self.writer.citing = CitedAnswer(self._quote_index(context.document), question)
        start = first = time.perf_counter()
        parts, made = list[str](), 0
        settings: dict[str, Any] = {
            "sampling": sampling,
            "max_tokens": options.max_tokens,
            "stop": options.stop,
            "allow_repetition": options.allow_repetition,
            "quotes": options.quotes,
            "answer_format": options.answer_format,
        }
        if self.library is not None:
            events = run.pipeline.ask(context, question, again=self.library.passages, **{**settings, "quotes": 0})
        elif options.over is None:
            events = run.pipeline.ask(
                context,
                question,
                passages=passages,
                history=options.history,
                earlier=[question for question, _ in options.history[-1:]],
                from_quotes=options.by_quotes,
                verbatim=options.verbatim,
                **settings,
            )
        else:
            events = self._over(context, question, settings)
        self._wait()
        try:
            for event in events:
                if isinstance(event, Answer):
                    return event, reread, quotes, None
                if isinstance(event, Quotes):
                    if quotes is None and not event.found and not (self.writer.holds and event.quotes):
                        terminal.note("text", quote_lines.NOTHING, quiet=options.quiet)
                    quotes = event
                    start = first = time.perf_counter() if not made else first
                if isinstance(event, Reread):
                    reread = event
                    if event.passages:
                        count = terminal.plural(len(event.passages), "sentence" if event.alone else "passage")
                        label, more = "reread", ", and nothing else" * event.alone
                        if context.unread:
                            label, more = "read", "; the rest of the text is not read"
                        text = f"{count}, {event.characters:,} characters{more} ({event.seconds:.1f} s)"
                        terminal.note(label, text, quiet=options.quiet)
                    start = first = time.perf_counter()
                if isinstance(event, Token):
                    first = first if made else time.perf_counter()
                    made += event.id >= 0
                    parts.append(event.text)
                    self.writer.write(event.text)
                self._wait(printing=bool(made and self.writer.stream))
        except INTERRUPTS as stop:
            text, now = "".join(parts), time.perf_counter()
            length = len(run.prompt.question(question, document=run.source is not None))
            return Answer(text, "interrupted", length, made, first - start, now - first), reread, quotes, stop
        raise RuntimeError("the engine ended without an answer")

    def _wait(self, *, printing: bool = False) -> None:
        """Say that the answer is being written, unless that can be seen."""
        if not (printing or self.runs.options.quiet):
            row.start("writing the answer")

    def _over(self, context: DocumentContext, question: str, settings: dict[str, Any]) -> Iterator[Any]:
        """The events of the last question, after each part was asked about."""
        from kvcli.corpus.parts import PartAnswer, PartBegun, ask_over

        quiet, self._part_answers = self.runs.options.quiet, []
        for event in ask_over(
            self.runs.pipeline, context, self._parts, question, join=self.runs.options.join, **settings
        ):
            if isinstance(event, PartBegun) and not quiet:
                row.start("joining the answers" if event.part is None else f"part {event.number} of {event.total}")
            elif isinstance(event, PartAnswer):
                self._part_answers.append(event)
                said = " ".join(event.answer.text.split())
                title = f"[{event.number}/{event.total}] {event.part.title}: {said[:60]}{'…' * (len(said) > 60)}"
                terminal.note("part", title, quiet=quiet)
            elif not isinstance(event, PartBegun):
                yield event

    def _parts_json(self, context: DocumentContext, question: str) -> list[dict[str, Any]]:
        """The answers of the parts, each with its place and its citations."""
        out = []
        for each in self._part_answers:
            assert context.document is not None
            cited = self._cite(context, question, each.answer, likely=False)
            place = context.document.at(each.part.start).place
            out.append(
                {
                    "title": each.part.title,
                    **place,
                    "char_start": each.part.start,
                    "char_end": each.part.end,
                    "answer": each.answer.text,
                    "finish_reason": each.answer.finish_reason,
                    "citations": cited.to_json()["citations"],
                }
            )
        return out

    def _cite(self, context: DocumentContext, question: str, answer: Answer, likely: bool | None = None) -> Citations:
        from kvcli.pipeline import Citations

        options, cited = self.runs.options, Citations()
        if options.cite and context.document is not None:
            index = self._quote_index(context.document)
            likely = True if self.writer.as_json and likely is None else likely
            likely = False if self.library or answer.finish_reason == "interrupted" else likely  # not all was read
            with interruptible("looking for quotes"):
                cited = self.runs.pipeline.cite(context, question, answer.text, likely_sources=likely, index=index)
        return cited

    def _quote_index(self, document: Document) -> QuoteIndex:
        from kvcli.documents.quotes import QuoteIndex

        if self._index is None:
            self._index = QuoteIndex(self.library.document if self.library else document)
        return self._index

    def _print_summary(self, report: Report, answer: Answer, left: int) -> None:
        """After the answer: statistics and details if asked for, what was left undone, and where it was written."""
        options, quiet = self.runs.options, self.runs.options.quiet
        if report.context.tokens and (options.verbose or options.stats):
            terminal.note("read", reading(report.context), quiet=quiet)
        if answer.finish_reason == "interrupted":
            made = answer.completion_tokens
            kept = f"after {terminal.plural(made, 'token')}" if made else "before the answer began"
            skipped = f"; {terminal.plural(left, 'question')} not asked" if left else ""
            terminal.note("stopped", f"{kept}{skipped}", quiet=quiet)
        if options.stats:
            for label, text in report.statistics(
                answer, alone=len(self.questions) == 1 and not (self.task or self.title)
            ):
                terminal.note(label, text)
        if options.verbose:
            spec = self.runs.model.spec
            mapped = f" · decodes with {format_bytes(spec.mapped_bytes)} of other weights" if spec.mapped_bytes else ""
            terminal.note("model", f"fingerprint {spec.fingerprint}{mapped}", quiet=quiet)
            alone = report.reread is not None and report.reread.alone
            terminal.note("asked", "by worked examples" if alone else "by the model's own template", quiet=quiet)
        if self.writer.path is not None:
            terminal.note("answer", f"written to {self.writer.path}", quiet=quiet)
