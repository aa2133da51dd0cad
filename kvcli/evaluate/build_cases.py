"""The list of cases of a run, from tasks and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kvcli.errors import UsageError
from kvcli.evaluate import datasets
from kvcli.evaluate.case import Case, CaseGenerator, CaseRequest, CaseSpec, PassagePool
from kvcli.evaluate.datasets import Data
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.tasks import Task
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.utils.sizes import parse_tokens

CASES = 10
"""Default number of cases per task and length."""


def lengths(text: str, option: str = "--lengths") -> list[int]:
    """Parse ``4K,8192,1M`` into distinct token counts in order; K is 1,024 and M is 1,024². Errors name ``option``.

    Raises:
        UsageError: not a length.
    """
    found = [parse_tokens(part, option) for part in filter(None, map(str.strip, text.split(",")))]
    if not found:
        raise UsageError(f"{option} is empty", f"{option} 4K,8K")
    return list(dict.fromkeys(found))


def reread_counts(text: str, option: str = "--reread") -> tuple[int, ...]:
    """Parse ``0,3`` into distinct numbers of passages in order. Errors name ``option``.

    Raises:
        UsageError: not a number.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise UsageError(f"{option} {part or repr(text)} is not a number of passages", f"{option} 0,3")
    return tuple(dict.fromkeys(map(int, parts)))


def case_specs(
    tasks: Sequence[Task],
    *,
    counter: TokenCounter,
    haystack: Haystack,
    data: Data | None,
    lengths: Sequence[int],
    cases: int | None,
    seed: int,
) -> list[tuple[Task, CaseSpec]]:
    """List every case of every task at every length.

    Args:
        tasks: the tasks.
        counter: counts tokens as the model reads them.
        haystack: the text in which facts are hidden.
        data: the files of ``--data``.
        lengths: token counts for generated texts.
        cases: number of cases each; ``None`` is :data:`CASES`, and all of ``data``.
        seed: of all generators.

    Raises:
        UsageError: a task needs data and there are none.
        InputError: the data do not fit the task.
    """
    found: list[tuple[Task, CaseSpec]] = []
    for task in tasks:
        if data is None and (task.passages or task.make is None):
            raise UsageError(f"'{task.name}' needs files", f"kvcli eval {task.name} --data FILE_OR_FOLDER")
        if task.make is None:
            assert data is not None
            found += [(task, job) for job in datasets.jobs(data, cases)]
            continue
        passages = datasets.passages(data) if task.passages and data is not None else None
        for length in lengths if task.sized else [None]:
            for number in range(cases or CASES):
                make = partial(_make, task.make, task.name, number, length, seed, counter, haystack, passages)
                found.append((task, CaseSpec(task.name, length, number, make)))
    return found


def _make(
    make: CaseGenerator,
    name: str,
    number: int,
    length: int | None,
    seed: int,
    counter: TokenCounter,
    haystack: Haystack,
    passages: PassagePool | None,
) -> Case:
    return make(CaseRequest(name, number, length or 0, seed, counter, haystack, passages))
