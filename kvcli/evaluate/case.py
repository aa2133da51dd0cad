"""Evaluation cases: a text, questions with right answers, and the request from which a generator makes one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from kvcli.errors import InputError

if TYPE_CHECKING:
    from kvcli.evaluate.haystack import Haystack
    from kvcli.evaluate.token_counter import TokenCounter

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class CaseReading:
    """Options of reading a text for its questions.

    Attributes:
        query_aware: whether the text is read once per question, which then also precedes the text.
        rereads: numbers of passages to re-read before an answer; each question is answered once for each.
    """

    query_aware: bool = False
    rereads: tuple[int, ...] = (0,)


PLAIN = CaseReading()


@dataclass(frozen=True)
class CaseQuestion:
    """One question about a text.

    Attributes:
        text: the question for the model.
        gold: right answers. The metric decides whether they are alternatives or all required.
        metric: a name in :data:`kvcli.evaluate.metrics.METRICS`.
        choices: the classes or options, if the metric needs them.
        first_line: score only the first line of the answer, as few-shot prompts make a model continue.
    """

    text: str
    gold: tuple[str, ...]
    metric: str
    choices: tuple[str, ...] = ()
    first_line: bool = False


@dataclass(frozen=True)
class Case:
    """A text with questions, all asked of one prefill.

    Attributes:
        text: the document, without the prompt's words.
        questions: at least one.
        max_tokens: maximum answer length.
        tags: keys for breakdowns, e.g. ``{"values": "name"}``.
        raw: ask without a chat template and without the prompt's words, for few-shot prompts of benchmarks.
    """

    text: str
    questions: tuple[CaseQuestion, ...]
    max_tokens: int = 32
    tags: Mapping[str, str] = field(default_factory=dict)
    raw: bool = False


@dataclass(frozen=True)
class PoolPassage:
    """A text, its title, and the questions that it answers: ``(question, answers)`` each."""

    title: str
    text: str
    asked: tuple[tuple[str, tuple[str, ...]], ...]

    def show(self, n: int) -> str:
        return f"Document [{n}] (Title: {self.title}) {self.text}\n" if self.title else f"Document [{n}] {self.text}\n"


@dataclass(frozen=True)
class PassagePool:
    """All passages of ``--data``."""

    all: tuple[PoolPassage, ...]

    def __post_init__(self) -> None:
        if len(self.all) < 2 or not any(p.asked for p in self.all):
            raise InputError(
                f"{len(self.all)} passages with {sum(len(p.asked) for p in self.all)} questions are too few",
                'JSON Lines of {"title": …, "text": …, "question": …, "answers": […]}, or a SQuAD file',
            )


@dataclass(frozen=True)
class CaseRequest:
    """The input of a generator. A case depends only on task, seed, number, length and the material.

    Attributes:
        task: the task's name.
        number: index of the case, from 0.
        length: maximum tokens, the prompt's words around the text included.
        seed: of the run.
        counter: counts tokens.
        haystack: prose in which facts are hidden.
        passages: for multi-document QA.
    """

    task: str
    number: int
    length: int
    seed: int
    counter: TokenCounter
    haystack: Haystack
    passages: PassagePool | None = None

    @cached_property
    def rng(self) -> random.Random:
        """This case's random generator; the same object at every access."""
        return random.Random(f"{self.task} {self.seed} {self.number} {self.length}")

    @property
    def depth(self) -> float:
        """Relative position in the text, in [0, 1): evenly distributed over any subset of consecutive cases."""
        start = random.Random(f"depth {self.task} {self.seed} {self.length}").random()
        return (start + self.number * _GOLDEN) % 1


CaseGenerator = Callable[[CaseRequest], Case]


@dataclass(frozen=True)
class CaseSpec:
    """A case that is not built yet.

    Attributes:
        task: its row in the table.
        length: requested tokens; ``None`` for a text of its own length.
        number: index of the case, from 0.
        make: builds it.
    """

    task: str
    length: int | None
    number: int
    make: Callable[[], Case]
