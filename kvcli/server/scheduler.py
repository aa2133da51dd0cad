"""One thread runs all work of the model: prefills and answers take turns, chunk by chunk and token by token.

Each job is a generator of :class:`kvcli.Pipeline`; one step of it is one chunk of a prefill or one token of an answer.
A short answer therefore waits for at most one step of each other job, however long these are. Answers that wait for
their next token get it in one forward pass (:mod:`kvcli.engine.batched_step`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from kvcli.engine.batched_step import Paused, Step, step_together

T = TypeVar("T")
_END = object()


class JobCancelled(Exception):
    """The job was closed before its end: its client left, or the server stops."""


class Job(Generic[T]):
    """A generator that the scheduler runs; its events and its return value arrive in the event loop.

    Args:
        steps: yields events; its return value becomes :attr:`result`.
        stop: an event that makes ``steps`` end by itself, after it has saved its progress; without one, a cancelled job
            is closed between two steps.

    Attributes:
        waits_for: the decode step that the job waits for.
    """

    def __init__(self, steps: Iterator[Any], stop: threading.Event | None) -> None:
        self.steps, self.stop = steps, stop
        self.cancelled = False
        self.waits_for: Step | None = None
        self.result: T | None = None
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def cancel(self) -> None:
        """Ask the job to end after its current step. Safe from any thread, and more than once."""
        self.cancelled = True
        if self.stop is not None:
            self.stop.set()

    def step(self) -> bool:
        """Run one step in the calling thread; returns whether there are more."""
        resumed, self.waits_for = self.waits_for is not None, None
        more = self._advance()
        if more and resumed and self.waits_for is None:  # the token is sent; on to where its own step is needed
            more = self._advance()
        return more

    def _advance(self) -> bool:
        try:
            if self.cancelled and self.stop is None:
                close = getattr(self.steps, "close", None)
                if close is not None:
                    close()
                raise JobCancelled
            event = next(self.steps)
        except StopIteration as end:
            self.result = end.value
            self._deliver(_END)
        except BaseException as error:  # delivered to whoever waits; the scheduler must go on
            self._deliver(error)
        else:
            if isinstance(event, Paused):
                self.waits_for = event.step
            else:
                self._deliver(event)
            return True
        return False

    def _deliver(self, event: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def events(self) -> AsyncIterator[Any]:
        """The job's events. Raises what the job raised; cancels the job if the iteration is abandoned."""
        ended = False
        try:
            while True:
                event = await self._queue.get()
                if event is _END:
                    ended = True
                    return
                if isinstance(event, BaseException):
                    ended = True
                    raise event
                yield event
        finally:
            if not ended:
                self.cancel()


class Scheduler:
    """Runs jobs in turn, in one thread of its own."""

    def __init__(self) -> None:
        self._jobs: list[Job[Any]] = []
        self._changed = threading.Condition()
        self._draining = False
        self._thread = threading.Thread(target=self._run, name="kvcli-scheduler", daemon=True)
        self._thread.start()

    def submit(self, steps: Iterator[Any], stop: threading.Event | None = None) -> Job[Any]:
        """Queue a generator of events. Call it in a running event loop.

        Raises:
            JobCancelled: the server is stopping.
        """
        job: Job[Any] = Job(steps, stop)
        with self._changed:
            if self._draining:
                raise JobCancelled
            self._jobs.append(job)
            self._changed.notify()
        return job

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function as one step, and return what it returns."""

        def once() -> Generator[Any, None, T]:
            yield from ()
            return function()

        job: Job[T] = self.submit(once())
        async for _ in job.events():
            pass
        return job.result  # type: ignore[return-value]

    @property
    def jobs(self) -> int:
        """Jobs that are not finished."""
        with self._changed:
            return len(self._jobs)

    def drain(self) -> None:
        """Accept no more jobs; end each one after its current step. Prefills save their progress."""
        with self._changed:
            self._draining = True
            for job in self._jobs:
                job.cancel()
            self._changed.notify()

    def join(self, timeout: float | None = None) -> None:
        """Wait until all jobs have ended after :meth:`drain`."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._draining:
                    self._changed.wait()
                if not self._jobs:
                    return
                jobs = list(self._jobs)
            for job in jobs:
                if not job.step():
                    with self._changed:
                        self._jobs.remove(job)
            waiting = [job.waits_for for job in jobs if job.waits_for is not None]
            try:
                step_together(waiting)
            except Exception:  # too little memory, say: each answer then steps alone, and may say so itself
                for step in waiting:
                    step.logits = None
