"""Which worker gets which document: first those whose prefill is saved on its machine, then the largest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kvcli.corpus.task import DocumentTask


class Schedule:
    """Documents that wait for a worker, the largest file first, so that all workers end at nearly the same time."""

    def __init__(self, tasks: Iterable[DocumentTask]) -> None:
        self._tasks = {task.sha256: task for task in sorted(tasks, key=lambda task: -task.size)}
        self._held: dict[str, set[str]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._tasks)

    def hold(self, node: str, *documents: str) -> None:
        """The prefills of these documents (by digest) are saved on a machine."""
        self._held[node].update(documents)

    def take(self, node: str) -> DocumentTask:
        """The next document for a worker on a machine: one that it holds, else one that none holds, else any.

        Raises:
            KeyError: nothing waits.
        """
        if not self._tasks:
            raise KeyError(node)
        held = set[str]().union(*self._held.values())
        mine = next((key for key in self._tasks if key in self._held[node]), None)
        free = mine or next((key for key in self._tasks if key not in held), None)
        return self._tasks.pop(free or next(iter(self._tasks)))

    def put_back(self, task: DocumentTask) -> None:
        """A document that was not finished is the next one."""
        self._tasks = {task.sha256: task, **self._tasks}
