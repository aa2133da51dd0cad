"""Answers of one document after another with one loaded model: what runs in this process and on every Ray worker."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcli import documents
from kvcli.corpus.record import answer_record, cut_short, kv_record, length_remarks
from kvcli.corpus.task import DocumentTask, Question, Settings
from kvcli.documents.kept import DocumentCache
from kvcli.documents.quotes import QuoteIndex
from kvcli.documents.reader import is_url, load_file
from kvcli.documents.web import Fetched, Web
from kvcli.engine.sampling import Sampling
from kvcli.errors import InputError, KvcliError, ResourceError
from kvcli.events import Answer, Event, Quotes, Reread
from kvcli.pipeline import Citations, TokenizedDocument
from kvcli.planning import speed_history
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.prefill import PrefillInterrupted

if TYPE_CHECKING:
    from kvcli.documents import Document, Options
    from kvcli.models.model import Model
    from kvcli.pipeline import DocumentContext


@dataclass(frozen=True, kw_only=True)
class _Given(Web):
    """The document of a web address that was fetched before."""

    given: Fetched

    def fetch(self, _url: str) -> Fetched:
        return self.given


@dataclass(frozen=True)
class Answered:
    """One answer: its record."""

    task: DocumentTask
    question: Question
    record: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The error of one question, or of a whole document (``question`` is ``None``)."""

    task: DocumentTask
    question: Question | None
    error: KvcliError


@dataclass(frozen=True)
class DocumentFinished:
    """Every question about a document was asked."""

    task: DocumentTask
    tokens: int


Item = Event | Answered | Failed | DocumentFinished


class Stopped(Exception):
    """``stop`` returned true; what is not yet answered stays to be asked."""


def failure_record(task: DocumentTask, question: Question | None, error: KvcliError) -> dict[str, Any]:
    """The line of a failure."""
    key = task.failure_key if question is None else task.keys[task.questions.index(question)]
    asked = {} if question is None else {"question": question.text}
    asked |= {} if question is None or question.id is None else {"id": question.id}
    return {**error.to_json(), "key": key, "file": task.name, **asked}


def read_task(task: DocumentTask, reading: Options, kept: DocumentCache | None) -> Document:
    """The text of a task's document. Raises ``InputError``, also if its bytes are not those of the task any more."""
    data = task.data if task.path is None else load_file(task.path)
    contents = None if data is None else {task.name: data}
    web = _Given(given=Fetched(data, task.suffix)) if data is not None and is_url(task.name) else None
    document = documents.read([task.name], None, reading, kept, web, contents)
    if document.sha256 != task.sha256:
        raise InputError(f"{task.name} changed while kvcli was running", "the same command again")
    return document


class Worker:
    """A model and the settings of a run.

    Args:
        model: from :func:`kvcli.load_model`.
        settings: of every answer.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.settings = settings
        self.pipeline = settings.pipeline(model, _cache(settings))

    def answers(self, task: DocumentTask, stop: Callable[[], bool] = lambda: False) -> Iterator[Item]:
        """Read a document and answer its questions; errors are items.

        Args:
            task: the document and the questions.
            stop: asked after each chunk and token.

        Raises:
            Stopped: ``stop`` returned true. A prefill that was interrupted is saved.
        """
        try:
            kept = DocumentCache.default(reuse=not self.settings.rebuild) if self.settings.cache else None
            source = self.pipeline.tokenize(read_task(task, self.settings.reading, kept))
            choice = self.pipeline.choose_recipe(source, questions=1 if task.alone else 0, saved=False)
        except Exception as problem:
            yield Failed(task, None, KvcliError.of(problem))
            return
        read = yield from self._questions(task, source, choice.recipe, stop)
        yield DocumentFinished(task, read)

    def _questions(
        self, task: DocumentTask, source: TokenizedDocument, recipe: Any, stop: Callable[[], bool]
    ) -> Generator[Item, None, int]:
        """Returns how many tokens of the document were read."""
        pipeline, settings, read = self.pipeline, self.settings, 0
        context: DocumentContext | None = None
        index = QuoteIndex(source.document)
        for question, key in zip(task.questions, task.keys, strict=True):
            if stop():
                raise Stopped
            try:
                ids = pipeline.prompt.question(question.text)
                passages = settings.passages
                if passages is None:
                    passages = pipeline.default_passages(source, recipe, ids)
                unread = settings.unread(pipeline, source, question.text, recipe)
                kept = None if settings.query_aware else context
                if unread is None and not (kept and pipeline.fits(kept, question.text, max_tokens=settings.max_tokens)):
                    context = None  # free its memory first
                    events = pipeline.prefill_events(
                        source,
                        recipe=recipe,
                        question=question.text,
                        query_aware=settings.query_aware,
                        max_tokens=settings.max_tokens,
                        passages=passages,
                        origin="map",
                        rebuild=settings.rebuild,
                        stop=stop,
                    )
                    context = yield from events
                    read, spec = context.tokens, pipeline.model.spec
                    speed_history.record(spec, context.recipe, read=read - context.reused, read_s=context.prefill_s)
                asked = unread or context
                assert asked is not None
                body = yield from self._answer(task, question, asked, passages, index, stop)
                schema, rest = body.pop("schema"), body
                yield Answered(task, question, {"schema": schema, "key": key, "file": task.name, **rest})
            except (Stopped, PrefillInterrupted):
                raise Stopped from None
            except Exception as problem:
                yield Failed(task, question, KvcliError.of(problem))
        return read

    def _answer(
        self,
        task: DocumentTask,
        question: Question,
        context: DocumentContext,
        passages: int,
        index: QuoteIndex,
        stop: Callable[[], bool],
    ) -> Generator[Item, None, dict[str, Any]]:
        """Returns the record of an answer, without its key and file."""
        settings, pipeline = self.settings, self.pipeline
        answer: Answer | None = None
        quotes: Quotes | None = None
        reread: Reread | None = None
        events = pipeline.ask(
            context,
            question.text,
            sampling=Sampling(**settings.sampling),
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            passages=passages,
            allow_repetition=settings.allow_repetition,
            quotes=settings.quotes,
            from_quotes=settings.by_quotes,
            verbatim=settings.verbatim,
            answer_format=settings.answer_format,
        )
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Answer):
                    answer = event
                elif isinstance(event, Quotes):
                    quotes = event
                elif isinstance(event, Reread):
                    reread = event
                yield event
                if stop():
                    raise Stopped
        assert answer is not None
        if settings.answer_format is not None and answer.finish_reason != "stop":
            raise cut_short(answer)
        speed_history.record(
            pipeline.model.spec, context.recipe, said=answer.completion_tokens - 1, said_s=answer.decode_s
        )
        document, spec = context.document, pipeline.model.spec
        assert document is not None
        cited = Citations()
        if settings.cite:
            cited = pipeline.cite(context, question.text, answer.text, likely_sources=False, index=index)
        record = answer_record(
            question,
            answer,
            replace(document, files=(task.name,)),
            context=context,
            cited=cited,
            quotes=quotes,
            kv=kv_record(context),
            reread=reread,
            sampling=settings.sampling_record,
            warnings=[*document.warnings, *length_remarks(answer, settings.max_tokens)],
        )
        model = {"name": spec.name, "fingerprint": spec.fingerprint, "dtype": spec.dtype}
        fields = self._field_quotes(document, question, answer.text) if settings.field_quotes else {}
        return {**record, "model": model, **fields}

    def _field_quotes(self, document: Document, question: Question, answer: str) -> dict[str, Any]:
        """``fields`` of a JSON answer: for each of its values the sentence that has it, and its page."""
        from kvcli.corpus.table import cells

        quotes = dict[str, Any]()
        for name, value in cells(answer).items():
            asked, said = f"{question.text} {name}", str(value)
            found_in = self.pipeline.find_quotes(
                document,
                asked if value in (None, "", True, False) else f"{asked} {said}",
                answer=said,
                count=1,
                by_model=False,
            ).quotes
            best = next((q for q in found_in if q.supports), None)
            place = {} if best is None else {"page": best.page, "label": best.label, "line": best.line}
            quotes[name] = None if best is None else {"quote": best.text, **place}
        return {"fields": quotes}


def _cache(settings: Settings) -> CacheDirectory | None:
    if not settings.cache:
        return None
    try:
        return CacheDirectory.default()
    except ResourceError:  # answers do not depend on it
        return None


class LocalWorkers:
    """One worker, in this process.

    Args:
        worker: has the model.
    """

    count = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def items(self, tasks: list[DocumentTask], stop: Callable[[], bool]) -> Iterator[Item]:
        """Do the tasks one after the other and yield events. Raises :class:`Stopped`."""
        for task in tasks:
            if stop():
                raise Stopped
            yield from self.worker.answers(task, stop)
