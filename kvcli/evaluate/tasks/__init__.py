"""The table of tasks; generators build cases of any length."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from kvcli.errors import UsageError
from kvcli.evaluate.case import CaseGenerator
from kvcli.evaluate.tasks import kv_retrieval, needle, passages, passkey, variable_tracking, word_counts


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: on the command line.
        summary: a few words about a case.
        make: builds a case; ``None`` for ``data``, whose cases are read from files.
        passages: whether it needs passages.
        sized: whether its texts have a requested length.
        hides: whether it hides facts in a document.
        several: whether several questions share a prefill.
    """

    name: str
    summary: str
    make: CaseGenerator | None
    passages: bool = False
    sized: bool = True
    hides: bool = False
    several: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("needle", "one invented fact (a number, a name or a word) in a text", needle.single, hides=True),
        Task("multikey", "four such facts of one kind, one of them asked for", needle.multikey, hides=True),
        Task("multivalue", "four values of one thing, all asked for at once", needle.multivalue, hides=True),
        Task(
            "multiquery",
            "eight facts of all kinds, each asked for after one reading",
            needle.multiquery,
            hides=True,
            several=True,
        ),
        Task("passkey", "a five-digit pass key", passkey.passkey, hides=True),
        Task("number", "a ten-digit number", passkey.number, hides=True),
        Task("kv", "the value of a key among random JSON pairs", kv_retrieval.kv),
        Task("variables", "all variables of a chain of assignments", variable_tracking.variables, hides=True),
        Task("common", "the ten most common words of a list", word_counts.common),
        Task("frequent", "the three most frequent words of a coded text", word_counts.frequent),
        Task("multidoc", "a question on one of many passages (--data)", passages.multidoc, passages=True),
        Task("gold", "the same questions, given the right passage alone", passages.gold, passages=True, sized=False),
        Task("quotes", "whether the sentences that are quoted hold the answer", None, hides=True),
        Task(
            "fidelity", "token probabilities beside those of full attention", needle.fidelity, hides=True, several=True
        ),
        Task("data", "the cases of benchmark files (--data)", None, sized=False, several=True),
    )
}


def lookup(name: str) -> Task:
    """Return a task by name.

    Raises:
        UsageError: unknown task; lists all and suggests the nearest.
    """
    task = TASKS.get(name.lower())
    if task is None:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1, cutoff=0.5)
        nearest = f"; did you mean '{near[0]}'?" if near else "."
        raise UsageError(
            f"unknown task '{name}'{nearest} Tasks: {', '.join(TASKS)}",
            f"kvcli eval {near[0] if near else 'needle'}",
        )
    return task
