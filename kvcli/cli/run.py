"""One run of ``ask``: every question answered, streamed or as JSON, and what is said of it."""

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from kvcli.cli.desk import Desk, Settings, during
from kvcli.cli.exit_codes import PARTLY_FAILED, error_object, to_kvcli_error
from kvcli.cli.output import AnswerWriter
from kvcli.cli.request import Question, Request
from kvcli.cli.signals import INTERRUPTS, Interrupted, exit_code_for
from kvcli.cli.views import citations, terminal
from kvcli.events import Answer, Token
from kvcli.planning import speed_history
from kvcli.utils import process_memory

if TYPE_CHECKING:
    from kvcli.cache.context import Context

__all__ = ["Run", "Settings", "during"]


class Run(Desk):
    """A desk with questions, and a place for answers to go to."""

    def __init__(self, settings: Settings, request: Request, sink: AnswerWriter) -> None:
        super().__init__(settings, request)
        self.sink = sink
        self.asked = 0
        self.ungrounded = 0
        self._lookup = citations.Lookup()

    def answer_all(self) -> None:
        """Every question in order. Raises ``typer.Exit`` where not all went well."""
        self._count(self._ask_all(batch=self.request.batch), len(self.request.questions), "question")

    def answer_each(self) -> None:
        """Every question of every file by itself; the model is loaded once. Raises ``typer.Exit`` as above."""
        self._check()
        self._load()
        loaded, files, failed = self.report, self.request.files, 0
        for n, name in enumerate(files, 1):
            terminal.note("file", f"[{n}/{len(files)}] {name}", quiet=self.settings.quiet)
            self.report = replace(loaded, warnings=[])
            try:
                self._open((name,), None)
                self._settle()
                self.banner()
                failed += bool(self._ask_all(batch=True))
            except (typer.Exit, Interrupted, BrokenPipeError):
                raise
            except Exception as problem:
                failed += 1
                self._failed({"file": name}, problem)
        self._count(failed, len(files), "file")

    def _count(self, failed: int, total: int, what: str) -> None:
        if failed:
            terminal.warn(f"{failed} of {total} {what}s failed")
            raise typer.Exit(PARTLY_FAILED)
        if self.settings.exit_status and self.ungrounded:
            raise typer.Exit(citations.UNGROUNDED)

    def _ask_all(self, *, batch: bool) -> int:
        """How many questions failed."""
        questions = self.request.questions
        failed = 0
        for n, question in enumerate(questions, 1):
            self.asked = n
            if len(questions) > 1:
                terminal.note("question", f"[{n}/{len(questions)}] {question.text}", quiet=self.settings.quiet)
            try:
                self._answer(question)
            except (typer.Exit, Interrupted, BrokenPipeError):
                raise
            except Exception as problem:
                if not batch:
                    raise
                failed += 1
                name = {} if question.id is None else {"id": question.id}
                self._failed({**name, "question": question.text}, problem)
        return failed

    def _failed(self, which: dict[str, Any], problem: Exception) -> None:
        """One of a batch: said, and the next one is asked."""
        error = to_kvcli_error(problem)
        self.sink.abandon()
        if self.sink.as_json:
            self.sink.end("", {**error_object(error), **which})
        terminal.error(error)

    def _answer(self, question: Question) -> None:
        from kvcli.engine.sampling import Sampling

        settings, report, model = self.settings, self.report, self.model
        self._remarks: list[str] = []
        self._aim(question.text)
        ids = self.prompt.question(question.text, document=bool(self.ids))
        passages = self._passages(ids)
        longest = self._read(ids, settings.max_tokens, passages=passages)
        again, sight = list[str](), self.reader.context
        if sight is not None:
            with during("looking for passages"):
                again, sight = self._look(sight, question.text, passages)
        if again:
            ids = self.prompt.question(question.text, again=again)
            size = f"{sum(map(len, again)):,} characters"
            text = f"{terminal.plural(len(again), 'passage')} read again, {size} ({report.look_s:.1f} s)"
            terminal.note("look", text, quiet=settings.quiet)
        sampling = Sampling(**settings.sampling)
        report.sampling = {**asdict(sampling), "max_tokens": settings.max_tokens, "stop": list(settings.stop)}
        answer, stopped = self._generate(sight, ids, sampling, longest)
        report.peak_bytes = process_memory.peak(model.spec.device)
        speed_history.record(model.spec, self.recipe, said=answer.completion_tokens - 1, said_s=answer.decode_s)
        if answer.stopped_repeating:
            self._remark(
                f"the answer went in circles and was ended after {answer.completion_tokens:,} tokens;"
                f" try --temp 0.7, or -n {settings.max_tokens} to let it"
            )
        elif answer.finish_reason == "length":
            limit = "-n allows no more" if longest == settings.max_tokens else "the model's positions end there"
            hint = f"; try -n {2 * longest}" if longest == settings.max_tokens else ""
            self._remark(f"the answer was cut at {answer.completion_tokens:,} tokens: {limit}{hint}")
        report.cited = cited = self._cite(question.text, answer)
        notes = citations.lines(report.document, cited) if report.document else []
        self.sink.end(answer.text, report.answer(question, answer), marks=citations.marks(cited), notes=notes)
        for remark in self._remarks:
            terminal.warn(remark, quiet=settings.quiet)
        self._aftermath(answer)
        if stopped is not None:
            raise typer.Exit(exit_code_for(stopped))

    def _remark(self, text: str) -> None:
        """A warning about the answer at hand: in its record, and on the screen once its last line has ended."""
        self._remarks.append(text)
        if text not in self.report.warnings:
            self.report.warnings.append(text)

    def _generate(
        self, context: "Context | None", ids: list[int], sampling: Any, longest: int
    ) -> tuple[Answer, BaseException | None]:
        """The answer, streamed; where it was interrupted, what there is of it and what interrupted it."""
        from kvcli.engine.generate import generate, new_decode_cache

        start = time.perf_counter()
        first, parts, made = start, list[str](), 0
        tail = new_decode_cache(self.model, context)
        events = generate(
            self.model,
            tail,
            ids,
            sampling=sampling,
            max_tokens=longest,
            stop=self.settings.stop,
            chunk=self.chunk,
            circles=self.settings.circles,
        )
        try:
            for event in events:
                if isinstance(event, Answer):
                    return event, None
                if isinstance(event, Token):
                    first = first if made else time.perf_counter()
                    made += event.id >= 0
                    parts.append(event.text)
                    self.sink.write(event.text)
        except INTERRUPTS as stop:
            text, now = "".join(parts), time.perf_counter()
            answer = Answer(text, "interrupted", len(ids), made, first - start, now - first)
            return answer, stop
        raise RuntimeError("the engine ended without an answer")

    def _cite(self, question: str, answer: Answer) -> citations.Cited:
        """Where the answer's words stand in the document; pages that it attends to, where that is to be shown."""
        settings, document, context = self.settings, self.report.document, self.reader.context
        cited, start = citations.Cited(), time.perf_counter()
        if settings.cite != "off" and document and context:
            with during("looking up what the answer quotes"):
                cited = self._lookup.cited(document, answer.text)
                if answer.finish_reason != "interrupted" and (self.sink.as_json or not cited.grounded):
                    from kvcli.retrieval.attribution import attribute

                    pages = attribute(self.model, self.prompt, context, document, question, answer.text)
                    cited = replace(cited, likely=tuple(pages))
        self.report.cite_s = time.perf_counter() - start
        if settings.cite == "strict" and not cited.grounded:
            self.ungrounded += 1
            self._remark("the answer is not grounded: nothing that it quotes is in the document word for word")
        return cited

    def _aftermath(self, answer: Answer) -> None:
        """After the answer: read, kept, dropped, and statistics where they were asked for."""
        quiet = self.settings.quiet
        if self.report.document:
            terminal.note("read", self.report.reading(), quiet=quiet)
        if answer.finish_reason == "interrupted":
            made = answer.completion_tokens
            kept = f"after {terminal.plural(made, 'token')} of the answer" if made else "before the answer began"
            left = len(self.request.questions) - self.asked
            skipped = f"; {terminal.plural(left, 'question')} not asked" if left else ""
            terminal.note("stopped", f"interrupted {kept}{skipped}", quiet=quiet)
        if self.settings.stats:
            for label, text in self.report.statistics(answer):
                terminal.note(label, text)
        if self.settings.verbose:
            terminal.note("model", f"fingerprint {self.model.spec.fingerprint}", quiet=quiet)
        if self.sink.path is not None:
            terminal.note("answer", f"written to {self.sink.path}", quiet=quiet)
