"""Workers on Ray (extra ``kvcli[ray]``): an actor per GPU, or per few cores, each with the model loaded once.

Documents go to the workers by content, or by a path that all machines share. A document goes to a worker on whose
machine its prefill is saved, if there is one. A worker that dies loses only the document under way: another one takes
it up, with the questions that have no answer yet.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kvcli.corpus.ray_cluster import cluster, last_line, refuse_version
from kvcli.corpus.schedule import Schedule
from kvcli.corpus.task import DocumentTask, Settings
from kvcli.corpus.worker import Answered, DocumentFinished, Failed, Item, Stopped, Worker
from kvcli.documents.reader import load_file
from kvcli.errors import KvcliError, ResourceError
from kvcli.events import Notice, Prefill
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from types import TracebackType

DEATHS = 3
"""How often a worker may die over one document, or in a row while it starts, before that is an error."""

PROGRESS_S = 0.5
"""Seconds between two messages of a worker about its prefill."""


class RemoteWorker:
    """The actor: loads the model, answers tasks one at a time, and hears :meth:`stop` meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stopped = threading.Event()
        self._worker: Worker | None = None

    def load(self, version: str) -> dict[str, Any]:
        """Load the model.

        Args:
            version: of kvcli on the machine of the command.

        Returns:
            ``host``, ``node``, ``fingerprint`` of the model, ``pid``, and ``holds``: digests of documents whose
            prefills are saved here.

        Raises:
            ResourceError: this machine has another version.
        """
        import ray

        host = socket.gethostname()
        refuse_version(version, {host: __version__})
        from kvcli.pipeline import load_model

        own = self.settings
        model = load_model(
            own.model,
            device=own.device,
            dtype=own.dtype,
            weights=own.weights,
            heads=own.heads,
            offline=own.offline,
        )
        self._worker = Worker(model, own)
        cache = self._worker.pipeline.cache
        return {
            "host": host,
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "fingerprint": model.spec.fingerprint,
            "holds": set() if cache is None else cache.documents(),
        }

    def answers(self, task: DocumentTask) -> Iterator[Item]:
        """The answers, failures and progress of a task, as :meth:`Worker.answers` gives them."""
        assert self._worker is not None
        said = 0.0
        with contextlib.suppress(Stopped):
            for item in self._worker.answers(task, self._stopped.is_set):
                if isinstance(item, Answered | Failed | DocumentFinished):
                    yield replace(item, task=_named(task))
                elif isinstance(item, Prefill) and time.monotonic() - said > PROGRESS_S:
                    said = time.monotonic()
                    yield item

    def stop(self) -> None:
        """End after this token or chunk; a prefill under way is saved."""
        self._stopped.set()


def _named(task: DocumentTask) -> DocumentTask:
    return replace(task, data=None)


@dataclass
class _Slot:
    """One place for a worker: the actor, and what it is doing."""

    actor: Any
    loading: Any = None
    stream: Any = None
    task: DocumentTask | None = None
    node: str = ""
    pid: int = 0
    answered: set[str] = field(default_factory=set)


class RayWorkers:
    """Workers on a Ray cluster; to be used in a ``with`` statement.

    Args:
        settings: of every answer.
        fingerprint: of the model; a worker that loads another one is refused.
        address: ``HOST:PORT`` or ``auto`` of a cluster; ``None`` starts one on this machine.
        workers: how many; by default one per GPU, or one per ``cpus``.
        cpus: cores of a worker.
        shared_paths: workers open the files themselves, at the same absolute paths.

    Raises:
        ResourceError: Ray is not installed, does not answer, or has too few cores.
    """

    def __init__(
        self,
        settings: Settings,
        fingerprint: str,
        *,
        address: str | None = None,
        workers: int | None = None,
        cpus: int = 1,
        shared_paths: bool = False,
    ) -> None:
        self.settings, self.fingerprint = settings, fingerprint
        self.address, self.cpus, self.shared_paths = address, cpus, shared_paths
        self._wanted = workers
        self._exit = contextlib.ExitStack()
        self._slots = list[_Slot]()
        self.resources: dict[str, float] = {}
        self.count = 0

    def __enter__(self) -> Self:
        self._exit.enter_context(cluster(self.address, cpus=None if self._wanted is None else self._wanted * self.cpus))
        try:
            import ray

            self.resources = ray.cluster_resources()
            gpus = int(self.resources.get("GPU", 0)) if self.settings.device in (None, "cuda") else 0
            cores = int(self.resources.get("CPU", 0))
            self.count = self._wanted or gpus or cores // self.cpus
            if not self.count or (not gpus and self.count * self.cpus > cores):
                raise ResourceError(
                    f"{self.count or 1} workers of {self.cpus} cores need more than the {cores} cores of the cluster",
                    "a smaller --workers or --cpus-per-worker",
                )
            options = {"num_cpus": self.cpus, "num_gpus": 1 if gpus else 0, "max_concurrency": 2}
            self._actor = ray.remote(RemoteWorker).options(**options)
            self._slots = [self._start() for _ in range(self.count)]
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        for slot in self._slots:
            with contextlib.suppress(Exception):
                ray.kill(slot.actor)
        self._exit.close()

    def items(self, tasks: Sequence[DocumentTask], stop: Callable[[], bool]) -> Iterator[Item]:
        """Do all tasks and yield events in the order of the workers' messages. Raises :class:`Stopped`."""
        import ray

        queue, deaths, starts, told = Schedule(tasks), Counter[str](), 0, False
        while len(queue) or any(slot.stream for slot in self._slots):
            if stop() and not told:
                told = True
                for slot in self._slots:
                    slot.actor.stop.remote()
            if told and not any(slot.stream for slot in self._slots):
                raise Stopped
            for slot in self._slots:
                if slot.loading is None and slot.stream is None and not told and len(queue):
                    yield from self._hand_out(slot, queue)
            waiting = {slot.loading or slot.stream: slot for slot in self._slots if slot.loading or slot.stream}
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=0.2) if waiting else ([], [])
            for handle in ready:
                slot = waiting[handle]
                try:
                    if slot.loading is not None:
                        self._loaded(slot, queue)
                        starts = 0
                        continue
                    item = ray.get(next(slot.stream))
                    if isinstance(item, Answered):
                        slot.answered.add(str(item.record["key"]))
                    elif isinstance(item, DocumentFinished):
                        queue.hold(slot.node, item.task.sha256)
                    yield item
                except StopIteration:
                    slot.stream = slot.task = None
                except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                    starts += slot.loading is not None
                    if starts > DEATHS * max(1, self.count) or (slot.loading is not None and _cannot_start(error)):
                        raise ResourceError(
                            f"a worker cannot start: {last_line(error)}", "kvcli doctor --ray"
                        ) from None
                    yield from self._died(slot, queue, deaths)
        if stop():
            raise Stopped

    def _start(self) -> _Slot:
        actor = self._actor.remote(self.settings)
        return _Slot(actor, loading=actor.load.remote(__version__))

    def _loaded(self, slot: _Slot, queue: Schedule) -> None:
        import ray

        try:
            about = ray.get(slot.loading)
        except ray.exceptions.RayTaskError as error:
            raise KvcliError.of(error.cause) from None
        if about["fingerprint"] != self.fingerprint:
            raise ResourceError(
                f"{about['host']} has another model of this name: {about['fingerprint']}, here {self.fingerprint}",
                "the same -m on all machines: a Hugging Face id, or a path that they share",
            )
        slot.node, slot.pid, slot.loading = about["node"], about["pid"], None
        queue.hold(slot.node, *about["holds"])

    def _hand_out(self, slot: _Slot, queue: Schedule) -> Iterator[Item]:
        task = queue.take(slot.node)
        try:
            if task.data is None:
                path = str(Path(task.name).absolute())
                task = replace(task, path=path) if self.shared_paths else replace(task, data=load_file(task.name))
        except KvcliError as error:
            yield Failed(task, None, error)
            return
        slot.task, slot.answered = task, set()
        slot.stream = slot.actor.answers.options(num_returns="streaming").remote(task)

    def _died(self, slot: _Slot, queue: Schedule, deaths: Counter[str]) -> Iterator[Item]:
        """Start a worker in the place of one that died, and put its document back."""
        import ray

        task, fresh = slot.task, self._start()
        left = None if task is None else task.without(slot.answered)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = fresh
        if task is None or left is None:
            yield Notice("a worker died while it loaded the model; another one is started")
            return
        deaths[task.sha256] += 1
        if deaths[task.sha256] >= DEATHS:
            why = f"a worker died {DEATHS} times while it answered about {task.name}"
            yield Failed(_named(task), None, ResourceError(why, "a smaller --budget, or --cpus-per-worker 2"))
        elif left.questions:
            yield Notice(f"a worker died while it answered about {task.name}; another one takes it up")
            queue.put_back(_named(left))
        else:
            yield DocumentFinished(_named(task), 0)


def _cannot_start(error: Exception) -> bool:
    """Whether a worker died in its constructor: it cannot import kvcli, so another one cannot either."""
    return "ModuleNotFoundError" in str(error) or "ImportError" in str(error)
