"""From a request to the events of its answer: the document or long prompt is prefilled, then the model answers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvcli.cache.context import Context
from kvcli.documents.document import Document
from kvcli.documents.quotes import QuoteIndex
from kvcli.errors import UsageError
from kvcli.events import Answer, Prefill, Quotes, Reread, Token
from kvcli.models.model import Model
from kvcli.pipeline import Citations, DocumentContext, Pipeline, TokenizedDocument
from kvcli.planning.budget import Budget
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.recipe import Recipe
from kvcli.server.contexts import Contexts
from kvcli.server.conversations import Conversations
from kvcli.server.errors import ApiError
from kvcli.server.requests import CompletionRequest, Message
from kvcli.server.scheduler import Job, JobCancelled, Scheduler
from kvcli.server.uploads import UploadedFile, Uploads

SHORT = 1024
"""Tokens of a conversation that is answered as it is; a longer one is prefilled, with eviction, and saved."""

EXACT, STEP = 512, 512
"""Tokens at the end of a long conversation that are never evicted, at least. What is before them is prefilled up to a
multiple of ``STEP``, so that the next messages find the same beginning prefilled."""

QUOTES = 3
"""Sentences of the documents that a response quotes."""

STRIP = 60
"""Parts of a document whose kept shares are reported."""


_RANGE = ("char_start", "char_end")


@dataclass(frozen=True)
class ServiceOptions:
    """How the engine reads; as for :class:`kvcli.Pipeline`."""

    recipe: str | Recipe | None = None
    budget: Budget | None = None
    kv_bits: int | None = None
    chunk_size: int | None = None


@dataclass
class Answering:
    """One answer under way.

    Attributes:
        id, created: of the response; the same in each of its chunks.
        context: what was prefilled.
        cached_tokens: tokens of the prompt that were not computed for this request.
        answer: the end of the answer, once it has come.
        passages: character ranges that were read again.
        from_quotes: whether the model saw nothing but these.
        text: of the answer so far.
        quotes: sentences of the documents that may answer.
        files: each document's id, and where its text begins in that of all.
    """

    id: str
    created: int
    context: DocumentContext | None = None
    cached_tokens: int = 0
    answer: Answer | None = None
    passages: tuple[tuple[int, int], ...] = ()
    from_quotes: bool = False
    text: str = ""
    citations: Citations = field(default_factory=Citations)
    quotes: Quotes | None = None
    files: list[tuple[str, int]] = field(default_factory=list)

    @property
    def finish_reason(self) -> str:
        """``stop`` or ``length``: OpenAI's clients know no other reason of a text."""
        return "stop" if self.answer is not None and self.answer.finish_reason == "stop" else "length"

    @property
    def usage(self) -> dict[str, Any]:
        read = 0 if self.context is None else self.context.tokens
        asked = 0 if self.answer is None else self.answer.prompt_tokens
        written = 0 if self.answer is None else self.answer.completion_tokens
        return {
            "prompt_tokens": read + asked,
            "completion_tokens": written,
            "total_tokens": read + asked + written,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The ``kvcli`` field of a response: what was kept of the prompt, and where the answer comes from."""
        context, answer = self.context, self.answer
        facts: dict[str, Any] = {"finish_reason": None if answer is None else answer.finish_reason}
        if context is not None and context.context is not None:
            kept = context.context.kept
            facts["context"] = {
                "recipe": str(context.recipe),
                "tokens": context.tokens,
                "kept": kept,
                "evicted": context.tokens - kept,
                "cache": context.cache,
                "bytes": context.context.nbytes,
            }
        if context is not None and context.source is not None:
            facts["from_quotes"], facts["passages"] = self.from_quotes, [list(span) for span in self.passages]
            facts |= self.citations.to_json()
        if self.quotes is not None:
            facts["quotes"] = [asdict(quote) for quote in self.quotes.quotes]
            facts["answer_in_text"] = self.quotes.likely
        for place in (p for kind in ("citations", "likely_sources", "quotes") for p in facts.get(kind, ())):
            if place["char_start"] is not None:
                file, begin = [f for f in self.files if f[1] <= place["char_start"]][-1]
                place["file"], place["file_start"], place["file_end"] = file, *(place[c] - begin for c in _RANGE)
        return facts


class Service:
    """All requests of one server about one model. Belongs to one event loop.

    Args:
        model: a loaded model.
        names: names by which requests may call it; the first is the one that is shown.
        options: how documents and long prompts are read.
        cache: where prefills are saved; ``None`` saves nothing.
        memory: bytes of all contexts and conversations that stay in memory.
        queue: requests under way at most.
        root: a folder whose files requests may name by relative paths; ``None`` for none.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        options: ServiceOptions,
        *,
        cache: CacheDirectory | None,
        memory: int,
        queue: int,
        root: Path | None = None,
    ) -> None:
        self.model, self.names, self.options, self.cache, self.queue = model, names, options, cache, queue
        self.scheduler = Scheduler()
        self.conversations = Conversations(memory // 4)
        self.contexts = Contexts(self.scheduler, memory - memory // 4, self.conversations.forget)
        self.uploads = Uploads(root)
        self.active = 0
        self.created = int(time.time())
        self._pipeline = lru_cache(maxsize=32)(self._new_pipeline)
        self._index = lru_cache(maxsize=4)(QuoteIndex)

    def _new_pipeline(self, system: str | None, raw: bool) -> Pipeline:
        how = self.options
        return Pipeline(
            self.model,
            how.recipe,
            cache=self.cache,
            budget=how.budget,
            kv_bits=how.kv_bits,
            chunk_size=how.chunk_size,
            system=system,
            raw=raw,
        )

    def check(self, request: CompletionRequest) -> None:
        """Refuse what needs no work to be refused. Raises :class:`ApiError`."""
        if request.model is not None and request.model not in self.names:
            raise ApiError(404, f"the model here is {self.names[0]}", code="model_not_found", param="model")
        if request.documents and request.messages[-1].role == "assistant":
            raise ApiError(400, "a conversation about documents must end with a user message", param="messages")
        self.check_queue()

    def check_queue(self) -> None:
        """Refuse a request that is one too many. Raises :class:`ApiError`."""
        if self.active >= self.queue:
            raise ApiError(
                429,
                f"{self.active} requests are under way, and {self.queue} are allowed",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    async def prefill(self, document: Document) -> DocumentContext:
        """Prefill a document before anybody asks."""
        pipeline = self._pipeline(None, False)
        source = await asyncio.to_thread(pipeline.tokenize, document)
        recipe = await self._recipe(pipeline, source)
        context, _ = await self.contexts.get(pipeline, source, recipe, max_tokens=1)
        return context

    async def prefill_events(self, document: Document) -> AsyncIterator[dict[str, Any]]:
        """Prefill a document and say how far it is, in tokens and in bytes of KV cache; ``full_bytes`` if all was kept.

        The last event has the kept share of each of ``STRIP`` equal parts of the document.

        Raises:
            KvcliError: it does not fit the model or the memory.
        """
        pipeline, answering = self._pipeline(None, False), new_answering("prefill")
        source = await asyncio.to_thread(pipeline.tokenize, document)
        recipe, row = await self._recipe(pipeline, source), self.model.spec.row_bytes
        self.active += 1
        try:
            async for event in self._prefilled(pipeline, source, recipe, 1, answering):
                bytes_ = {"bytes": event.kept * row, "full_bytes": event.done * row}
                yield {"done": event.done, "total": event.total, "seconds": round(event.seconds, 2), **bytes_}
        finally:
            self.active -= 1
        assert answering.context is not None
        tokens, frozen = answering.context.tokens, answering.context.context
        held = 0 if frozen is None else frozen.nbytes
        cached, sliding = answering.cached_tokens, self.model.spec.sliding
        shares = [] if frozen is None else await self.scheduler.call(lambda: _shares(frozen, tokens, sliding))
        yield {
            "done": tokens,
            "total": tokens,
            "bytes": held,
            "full_bytes": tokens * row,
            "cached": cached,
            "kept": shares,
            "ready": True,
        }

    async def answer(self, request: CompletionRequest, answering: Answering) -> AsyncIterator[Prefill | Token | Answer]:
        """The events of one request; fills in ``answering`` as they come.

        Raises:
            ApiError: the request names an unknown file.
            KvcliError: it does not fit the model or the memory.
            JobCancelled: the server stops and nothing was written yet.
        """
        self.active += 1
        try:
            async for event in self._answer(request, answering):
                yield event
        finally:
            self.active -= 1

    async def _answer(
        self, request: CompletionRequest, answering: Answering
    ) -> AsyncIterator[Prefill | Token | Answer]:
        system = request.messages[0].text if request.documents and request.messages[0].role == "system" else None
        pipeline = self._pipeline(system, request.raw)
        if request.documents:
            files = [await asyncio.to_thread(self.uploads.find, name) for name in request.documents]
            document, answering.files = joined(files)
            source: TokenizedDocument | None = await asyncio.to_thread(pipeline.tokenize, document)
            history, question = turns(request.messages)
            earlier = [before for before, _ in history[-1:]]
            asked: dict[str, Any] = {"question": question, "history": history, "quotes": QUOTES, "earlier": earlier}
        else:
            document = None
            source, ids = await asyncio.to_thread(split_prompt, pipeline, request.messages)
            asked = {"question": ids}
        recipe = await self._recipe(pipeline, source)
        if source is not None and document is not None and not (history or request.stop or request.answer_format):
            asked["from_quotes"] = None  # as kvcli ask does
            answering.context = await asyncio.to_thread(pipeline.unread, source, question, recipe, default=True)
        if answering.context is None:
            async for event in self._prefilled(pipeline, source, recipe, request.max_tokens, answering):
                yield event
        assert answering.context is not None
        kept = None if document else self.conversations.take(answering.context.context, asked["question"])
        job: Job[None] = self.scheduler.submit(
            pipeline.ask(
                answering.context,
                sampling=request.sampling,
                max_tokens=request.max_tokens,
                stop=request.stop,
                answer_format=request.answer_format,
                kept=kept,
                together=True,
                **asked,
            )
        )
        written, began = 0, time.perf_counter()
        try:
            async for event in job.events():
                if isinstance(event, Reread):
                    answering.passages, answering.from_quotes = event.passages, event.alone
                elif isinstance(event, Quotes):
                    answering.quotes = event
                elif isinstance(event, Token):
                    if not written and kept is not None:
                        answering.cached_tokens += kept.reused
                    written += event.id >= 0
                    answering.text += event.text
                    yield event
                elif isinstance(event, Answer):
                    answering.answer = event
            if kept is not None:
                self.conversations.keep(kept)
        except JobCancelled:
            if not written:
                raise
            seconds = time.perf_counter() - began
            answering.answer = Answer(answering.text, "interrupted", 0, written, 0.0, seconds)
        assert answering.answer is not None
        if document is not None and answering.answer.finish_reason != "interrupted":
            answering.citations = await self._cite(pipeline, answering.context, document, question, answering.text)
        yield answering.answer

    async def _prefilled(
        self,
        pipeline: Pipeline,
        source: TokenizedDocument | None,
        recipe: Recipe,
        max_tokens: int,
        answering: Answering,
    ) -> AsyncIterator[Prefill]:
        if source is None:
            answering.context = await self.scheduler.call(lambda: pipeline.prefill(None, recipe=recipe, max_tokens=1))
            return
        events: asyncio.Queue[Any] = asyncio.Queue()
        reading = asyncio.create_task(
            self.contexts.get(pipeline, source, recipe, max_tokens=max_tokens, on_event=events.put_nowait)
        )
        reading.add_done_callback(lambda _task: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Prefill):
                    yield event
            answering.context, answering.cached_tokens = await reading
        finally:
            reading.cancel()

    async def _recipe(self, pipeline: Pipeline, source: TokenizedDocument | None) -> Recipe:
        recipe = (await self.scheduler.call(lambda: pipeline.choose_recipe(source))).recipe
        if recipe.policy.query_aware:
            raise UsageError(f"'{recipe}' depends on the question, and a server answers many", "--policy keydiff")
        return recipe

    async def _cite(
        self, pipeline: Pipeline, context: DocumentContext, document: Document, question: str, answer: str
    ) -> Citations:
        index = await asyncio.to_thread(self._index, document)
        try:
            return await self.scheduler.call(lambda: pipeline.cite(context, question, answer, index=index))
        except JobCancelled:
            return Citations()


def new_answering(kind: str) -> Answering:
    """An answer that nothing is known of yet; ``kind`` begins its id, as ``chatcmpl``."""
    return Answering(f"{kind}-{uuid.uuid4().hex}", int(time.time()))


def turns(messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str]:
    """The questions and answers before the last message, and the last message."""
    spoken = [m for m in messages if m.role != "system"]
    while spoken and spoken[0].role == "assistant":
        del spoken[0]
    pairs = [(a.text, b.text) for a, b in zip(spoken[:-1:2], spoken[1:-1:2], strict=True)]
    return pairs, spoken[-1].text


def split_prompt(pipeline: Pipeline, messages: Sequence[Message]) -> tuple[TokenizedDocument | None, list[int]]:
    """A conversation as a document to prefill and the ids that follow it.

    A short conversation has no document. Of a long one at least the last ``EXACT`` tokens follow it. The cut depends on
    nothing else, so an answer does not depend on what was read before.
    """
    spoken = [(m.role, m.text) for m in messages]
    ids = pipeline.prompt.conversation(spoken)
    if len(ids) <= SHORT:
        return None, ids
    cut = (len(ids) - EXACT) // STEP * STEP
    text = "\n\n".join(text for _, text in spoken)
    return TokenizedDocument(Document.of_text(text, "conversation"), ids[:cut]), ids[cut:]


def joined(files: Sequence[UploadedFile]) -> tuple[Document, list[tuple[str, int]]]:
    """Several documents as one, in order; and each one's id, and where its text begins."""
    from kvcli.documents.document import join_documents

    document, begins = files[0].document, [(files[0].id, 0)]
    for file in files[1:]:
        document = join_documents(document, file.document)
        begins.append((file.id, len(document.text) - len(file.document.text)))
    return document, begins


def _shares(context: Context, tokens: int, sliding: Sequence[int | None]) -> list[float]:
    from kvcli.cache.retention import equal_bins, mean_retention

    return [round(share, 3) for share in mean_retention(context, equal_bins(tokens, STRIP), sliding)]
