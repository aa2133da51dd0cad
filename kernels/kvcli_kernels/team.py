"""Threads that divide products too small for Python's pool: handing over half a product takes less than a microsecond.

While a step is replayed (:func:`together`), the other threads wait in a compiled loop and take parts of each task
(:mod:`kvcli_kernels.team_loop`). Parts are taken, not assigned: a thread that the system does not run takes none.
Threads wait so only within a step, so that nothing runs while no answer is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import backend

_LEAST = 1 << 16  # minimum bytes of a weight that two threads share
_LARGE = 1 << 22  # bytes of a task for each thread, so that it is worth its while to call them for it alone
_PART = 1 << 15  # bytes of a weight per part
_PARTS = 64  # maximum parts of a task
_MOST = 4  # threads
_WAITS = 512  # long waits in a step, some 6 ms, that show that the system does not run the others
_REST = 16  # steps without the others after that

_lock = Lock()
_active: ContextVar[tuple[ModuleType, Any] | None] = ContextVar("team", default=None)
_rest = 0


def parts(size: int, rows: int) -> int:
    """Into how many parts to divide a task that reads so many bytes and may be divided into so many rows."""
    return max(1, min(size // _PART, _PARTS, rows)) if size >= _LEAST else 1


@dataclass(frozen=True, eq=False)
class TeamTask:
    """Work for compiled loops. A call does it with this step's team, or if there is none, on several threads if large.

    Attributes:
        words: int64: how many parts it has, its kind, and sizes and addresses in the order of its loop.
        size: bytes that it reads.
        keep: what owns the memory.
    """

    words: Any
    size: int
    keep: Sequence[Any]

    def __call__(self) -> None:
        if self.size >= 2 * _LARGE and _active.get() is None:
            with together():
                self._lead()
        else:
            self._lead()

    def _lead(self) -> None:
        loop, cells = _active.get() or (_loop(), None)
        assert loop is not None
        loop.lead(loop.begin() if cells is None else cells, self.words)


def task(words: Sequence[int], tensors: Sequence[Tensor], size: int, *keep: Any) -> TeamTask:
    """Describe a task: its first words, and the tensors whose addresses follow them; ``keep`` owns other memory."""
    return TeamTask(np.array([*words, *(x.data_ptr() for x in tensors)], np.int64), size, (*tensors, *keep))


def run(program: Any) -> None:
    """Carry out a program (:func:`kvcli_kernels.team_loop.run`); its tasks are shared if this step has a team."""
    loop, cells = _active.get() or (_loop(), None)
    assert loop is not None
    loop.run(loop.begin() if cells is None else cells, program)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """A thread pool for this module alone, because a task occupies its thread for a whole step."""
    return ThreadPoolExecutor(threads, thread_name_prefix="team")


def _loop() -> ModuleType | None:
    return backend.for_cpu("team_loop", "")


@contextmanager
def together() -> Iterator[None]:
    """Let tasks of this thread be shared in the block, if there are other threads and nobody else uses them."""
    global _rest
    count = min(torch.get_num_threads(), _MOST)
    loop = _loop() if count > 1 else None
    if loop is None or not _lock.acquire(blocking=False):
        yield
        return
    try:
        if _rest:
            _rest -= 1
            yield
            return
        cells = loop.begin()
        jobs = [_pool(count - 1).submit(loop.follow, cells) for _ in range(count - 1)]
        token = _active.set((loop, cells))
        try:
            yield
        finally:
            _active.reset(token)
            loop.end(cells)
            for job in jobs:
                job.cancel() or job.result()
        if loop.waited(cells) >= _WAITS:
            _rest = _REST
    finally:
        _lock.release()
