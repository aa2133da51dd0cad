"""Progress events: small frozen dataclasses that long-running work yields. Nothing below the command line prints."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Download:
    """Download progress of one file, in bytes."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Convert:
    """A one-time conversion (a GGUF file becoming safetensors), counted in tensors."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Prefill:
    """Prefill progress after a chunk, in tokens. ``kept``: units per KV head of a full-attention layer."""

    done: int
    total: int
    kept: int
    seconds: float


@dataclass(frozen=True)
class Token:
    """One generated token; ``text`` is empty while a character is incomplete."""

    id: int
    text: str


@dataclass(frozen=True)
class Answer:
    """The end of one answer.

    ``finish_reason`` is ``stop``, ``length`` or ``interrupted``; times are in seconds. If ``stopped_repeating``, the
    reason is ``length`` and the answer ended because it repeated itself. If ``cut``, ``text`` lacks what was repeated
    at its end, so it is not the text of all tokens. ``steps`` counts forward passes after the
    question's: fewer than tokens if drafts were accepted (:mod:`kvcli.engine.drafts`).
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float
    stopped_repeating: bool = False
    steps: int = 0
    cut: bool = False

    @property
    def decode_tps(self) -> float:
        """Tokens per second after the first one; 0 for fewer than two tokens."""
        return (self.completion_tokens - 1) / self.decode_s if self.completion_tokens > 1 and self.decode_s else 0.0


@dataclass(frozen=True)
class Training:
    """Training progress of retaining heads, after a step.

    ``overlap``: share of the labels' best tenth of units that the scores' best tenth contains. ``answers``: share of
    right answers, if a validation followed this step. ``run_steps``: steps of this run, which took ``seconds``.
    """

    step: int
    total: int
    loss: float
    overlap: float
    answers: float | None
    seconds: float
    run_steps: int


@dataclass(frozen=True)
class CacheHit:
    """A saved context was loaded: ``tokens`` of ``total`` need no prefill."""

    tokens: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """The first ``tokens`` tokens of a document were saved; a later prefill resumes after them."""

    tokens: int


@dataclass(frozen=True)
class Notice:
    """A failure that does not stop the work."""

    text: str


@dataclass(frozen=True)
class TurnsEvicted:
    """The conversation's first ``turns`` turns, ``tokens`` tokens, were evicted into its context."""

    turns: int
    tokens: int


@dataclass(frozen=True)
class Quote:
    """A sentence of the document that may answer a question.

    Attributes:
        text: as it is in the document, from ``char_start`` to ``char_end``.
        source: the file.
        page, label: its number from 1, and what is printed on it; ``None`` if the format has none.
        line: as :attr:`kvcli.documents.document.Span.line`.
        char_start, char_end: characters of the document's text.
        score: the probability that it answers, in [0, 1].
        supports: whether it has the words of the answer; ``None`` before there is one.
    """

    text: str
    source: str
    page: int | None
    label: str | None
    line: int
    char_start: int
    char_end: int
    score: float
    supports: bool | None = None


@dataclass(frozen=True)
class Quotes:
    """The sentences that may answer, the best first; with an answer, those that support it first.

    Attributes:
        quotes: what was found.
        by_model: the model has ranked them; otherwise they are ranked by words.
        seconds: since the search began, or 0 for those that an answer was compared with.
        likely: the probability that the text answers; 0 if no sentence shares a word with the question.
        found: whether ``likely`` is high enough to say that the text answers.
    """

    quotes: tuple[Quote, ...]
    by_model: bool
    seconds: float
    likely: float
    found: bool


@dataclass(frozen=True)
class Mapped:
    """Progress over many documents: ``tokens`` were read in ``seconds``; ``share`` of all bytes is done, in [0, 1]."""

    done: int
    total: int
    failed: int
    tokens: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Reread:
    """Retrieved passages that the model reads again before the question.

    ``passages`` are character ranges, the best one last; ``characters`` is their total length. If ``alone``, the model
    sees nothing else of the document.
    """

    passages: tuple[tuple[int, int], ...]
    characters: int
    seconds: float
    alone: bool = False


Event = (
    Download
    | Convert
    | Prefill
    | Checkpoint
    | Token
    | Answer
    | Training
    | CacheHit
    | Notice
    | TurnsEvicted
    | Reread
    | Quotes
    | Mapped
)

E = TypeVar("E")
R = TypeVar("R")


def drain(events: Generator[E, None, R], on_event: Callable[[Any], None] | None = None) -> R:
    """Run a generator to its end, pass each event to ``on_event``, and return the generator's return value."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: R = end.value
            return result
        if on_event is not None:
            on_event(event)


def only_prefill(events: Generator[Any, None, R]) -> Generator[Prefill, None, R]:
    """Yield only the :class:`Prefill` events of a generator; return its return value."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: R = end.value
            return result
        if isinstance(event, Prefill):
            yield event
