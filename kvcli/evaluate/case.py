"""A case: one text, the questions about it, what would be right, and how it is read. What a generator is told in order
to make one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcli.evaluate.haystack import Haystack
    from kvcli.evaluate.tasks.passages import PassagePool
    from kvcli.evaluate.token_counter import TokenCounter

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class ReadOptions:
    """How a text is read for its questions.

    Attributes:
        focus: once for each question, which then stands before the text too.
        looks: how many passages are looked at a second time before an answer; each question is answered once for
            each of these numbers, from the same reading.
    """

    focus: bool = False
    looks: tuple[int, ...] = (0,)


PLAIN = ReadOptions()


@dataclass(frozen=True)
class CaseQuestion:
    """One question about a text.

    Attributes:
        text: as the model is asked.
        gold: what is right. Whether these are alternatives or all wanted is the metric's business.
        metric: a name in :data:`kvcli.evaluate.metrics.METRICS`.
        choices: the classes or options to choose from, where the metric needs them.
        first_line: only the first line of the answer counts; few-shot prompts make a model go on.
    """

    text: str
    gold: tuple[str, ...]
    metric: str
    choices: tuple[str, ...] = ()
    first_line: bool = False


@dataclass(frozen=True)
class Case:
    """A text with its questions; all of them are asked of one reading.

    Attributes:
        text: the document, without the prompt's own words.
        questions: at least one.
        max_tokens: longest answer.
        tags: what breakdowns are made by, e.g. ``{"values": "name"}``.
        raw: ask without a chat template and without the prompt's words, as a benchmark's few-shot prompts want it.
    """

    text: str
    questions: tuple[CaseQuestion, ...]
    max_tokens: int = 32
    tags: Mapping[str, str] = field(default_factory=dict)
    raw: bool = False


@dataclass(frozen=True)
class CaseRequest:
    """What a generator is told: its case is a function of task, seed, number and length, and of the material given.

    Attributes:
        task: the task's name.
        number: which case, from 0.
        length: tokens to be read at most, the prompt's words around the text included.
        seed: of the run.
        ruler: counts tokens.
        haystack: prose to hide facts in.
        passages: for multi-document QA.
    """

    task: str
    number: int
    length: int
    seed: int
    ruler: TokenCounter
    haystack: Haystack
    passages: PassagePool | None = None

    @cached_property
    def rng(self) -> random.Random:
        """This case's own randomness; the same object whenever it is asked for."""
        return random.Random(f"{self.task} {self.seed} {self.number} {self.length}")

    @property
    def depth(self) -> float:
        """Where in the text, in [0, 1): even over any number of cases, whichever cases there are."""
        start = random.Random(f"depth {self.task} {self.seed} {self.length}").random()
        return (start + self.number * _GOLDEN) % 1


CaseGenerator = Callable[[CaseRequest], Case]


@dataclass(frozen=True)
class CaseSpec:
    """A case still to be made: what it is called and how to make it.

    Attributes:
        task: the row of the table it belongs to.
        length: tokens asked for; ``None`` where the text has a length of its own.
        number: which case, from 0.
        make: makes it.
    """

    task: str
    length: int | None
    number: int
    make: Callable[[], Case]
