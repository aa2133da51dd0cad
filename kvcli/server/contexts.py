"""Prefilled documents in memory: shared by all requests, dropped least recently used first."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from kvcli.cache.context import Context
from kvcli.errors import ResourceError
from kvcli.events import Event
from kvcli.pipeline import DocumentContext, Pipeline, TokenizedDocument
from kvcli.recipe import Recipe
from kvcli.server.scheduler import Job, Scheduler
from kvcli.types import ANSWER_TOKENS

Key = tuple[str, str, str, int]


@dataclass
class _Prefill:
    """A prefill under way, and who waits for it."""

    task: asyncio.Task[DocumentContext]
    stop: threading.Event
    listeners: list[Callable[[Event], None]] = field(default_factory=list)


class Contexts:
    """Prefilled documents. All methods belong to one event loop.

    Args:
        scheduler: runs the prefills.
        limit: bytes of all contexts together. The one used last stays in any case; dropped ones are still saved in the
            cache directory and are loaded from there.
        on_drop: called with each context that leaves memory.
    """

    def __init__(self, scheduler: Scheduler, limit: int, on_drop: Callable[[Context | None], None]) -> None:
        self.scheduler, self.limit, self.on_drop = scheduler, limit, on_drop
        self._ready: OrderedDict[Key, DocumentContext] = OrderedDict()
        self._under_way: dict[Key, _Prefill] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the contexts in memory."""
        return sum(_nbytes(context) for context in self._ready.values())

    async def get(
        self,
        pipeline: Pipeline,
        source: TokenizedDocument,
        recipe: Recipe,
        *,
        max_tokens: int,
        on_event: Callable[[Event], None] = lambda _event: None,
    ) -> tuple[DocumentContext, int]:
        """The context of a document, and how many of its tokens were not computed for this request.

        A prefill that nobody waits for any more is stopped after its current chunk; its progress is saved.

        Raises:
            KvcliError: as :meth:`kvcli.Pipeline.prefill_events`.
        """
        longest = -(-max_tokens // ANSWER_TOKENS) * ANSWER_TOKENS
        horizon = longest if pipeline.model.rotary.length_dependent else 0
        key = (pipeline.prompt.system or "", source.digest, str(recipe), horizon)
        context = self._ready.get(key)
        if context is not None:
            self._ready.move_to_end(key)
            return context, context.tokens
        running = self._under_way.get(key)
        if running is None:
            stop = threading.Event()
            running = _Prefill(asyncio.create_task(self._prefill(key, pipeline, source, recipe, longest, stop)), stop)
            running.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait for it
            self._under_way[key] = running
        running.listeners.append(on_event)
        try:
            context = await asyncio.shield(running.task)
        except asyncio.CancelledError:
            running.listeners.remove(on_event)
            if not running.listeners:
                running.stop.set()
                if self._under_way.get(key) is running:
                    del self._under_way[key]
            raise
        return context, context.reused

    async def _prefill(
        self,
        key: Key,
        pipeline: Pipeline,
        source: TokenizedDocument,
        recipe: Recipe,
        max_tokens: int,
        stop: threading.Event,
    ) -> DocumentContext:
        while True:
            job: Job[DocumentContext] = self.scheduler.submit(
                pipeline.prefill_events(source, recipe=recipe, max_tokens=max_tokens, origin="serve", stop=stop.is_set),
                stop,
            )
            try:
                async for event in job.events():
                    if running := self._under_way.get(key):
                        for listener in list(running.listeners):
                            listener(event)
            except ResourceError:
                if not self._ready:
                    self._under_way.pop(key, None)
                    raise
                self._drop()
                continue
            except BaseException:
                self._under_way.pop(key, None)
                raise
            break
        context = job.result
        assert context is not None
        self._under_way.pop(key, None)
        self._ready[key] = context
        while len(self._ready) > 1 and self.nbytes > self.limit:
            self._drop()
        return context

    def _drop(self) -> None:
        _, dropped = self._ready.popitem(last=False)
        self.on_drop(dropped.context)

    async def close(self) -> None:
        """Wait for the prefills that the scheduler is stopping."""
        for running in list(self._under_way.values()):
            with suppress(BaseException):
                await running.task


def _nbytes(context: DocumentContext) -> int:
    return 0 if context.context is None else context.context.nbytes + context.context.host_nbytes
