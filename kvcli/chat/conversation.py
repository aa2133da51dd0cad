"""A conversation about a document: ask, undo, retry, evict turns. No user interface, no file access.

base       the frozen document, and its prefill cache for further chunks
evictions  the numbers of turns after which turns were evicted into the context
cache      later turns, exact and rewindable
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from kvcli.cache.context import Context
from kvcli.cache.decode_cache import DecodeCache
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.chat.transcript import Turn
from kvcli.engine.drafts import Ids, as_ids
from kvcli.engine.generate import append_tokens, generate, new_decode_cache
from kvcli.engine.prefill import evict_turns
from kvcli.engine.prompt import PLAIN_STOPS, Prompt
from kvcli.engine.sampling import Sampling
from kvcli.errors import InputError, TooLongError
from kvcli.events import Answer, Event, Prefill, Token, TurnsEvicted
from kvcli.models.model import Model
from kvcli.recipe import Recipe


@dataclass
class ChatContext:
    """The state before the first turn.

    Attributes:
        prompt: the model's prompt format.
        recipe: the recipe for the document and for evicted turns.
        chunk: tokens per forward pass.
        work: the document's prefill cache, not to be used elsewhere; an empty one without a document.
        context: frozen from ``work``, until turns are evicted into it; ``None`` without a document.
        room: maximum tokens of the turns before they are evicted.
        total: maximum tokens of document and all turns, for recipes without eviction; ``None`` for no limit.
        reread: retrieves passages to re-read before a question, and the context that question and answer attend to.
            Passages do not stay in the decode cache and do not count against ``room``.
        by_quotes: of a question, the last question and its answer: the events of an answer from quotes alone; ``None``
            if the question is asked by the chat template.
        draft_ids: ids of the document, in which drafts of answers are looked up.
    """

    prompt: Prompt
    recipe: Recipe
    chunk: int
    work: PrefillCache
    context: Context | None
    room: int
    total: int | None = None
    reread: Callable[[Context, str], tuple[Sequence[str], Context]] | None = None
    by_quotes: Callable[..., Iterator[Event] | None] = lambda *_args, **_how: None
    draft_ids: Sequence[int] | Ids = ()

    def __post_init__(self) -> None:
        self.document = self.context is not None


@dataclass(frozen=True)
class _TurnStart:
    """The start of a turn: its index in the ids, and the decode cache's length before it."""

    ids: int
    held: int


class Conversation:
    """A conversation. Not thread-safe.

    Args:
        model: a loaded model.
        base: creates the chat context; called by :meth:`open`, and again to undo evicted turns, which is cheap if the
            document's prefill is saved.
        turns, evictions: of an earlier conversation (see :class:`kvcli.chat.transcript.Transcript`).
        unanswered: its question without an answer.
        changed: called after each change of these, to save them.
    """

    def __init__(
        self,
        model: Model,
        base: Callable[[], ChatContext],
        *,
        turns: Sequence[Turn] = (),
        evictions: Sequence[int] = (),
        unanswered: str | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self._make, self.changed = model, base, changed
        self.turns, self.evictions, self.unanswered = list(turns), list(evictions), unanswered
        self.base: ChatContext | None = None
        self.context: Context | None = None
        self.cache: DecodeCache | None = None
        self._ids: list[int] = []
        self._begun: list[_TurnStart] = []

    @property
    def used(self) -> int:
        """Tokens of the turns that are not evicted."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Bytes of context, decode cache and prefill cache."""
        work = None if self.base is None else self.base.work
        return sum(part.nbytes for part in (self.context, self.cache, work) if part is not None)

    def open(self) -> Generator[Prefill, None, None]:
        """Create the context, replay earlier turns, and evict those that were evicted before; yields eviction progress.

        The first question opens the conversation; call this earlier to separate the wait.
        """
        if self.base is not None:
            return
        base = self._make()
        self._start_from(base.context)
        done = 0
        for end in self.evictions:
            self._queue_turns(base, done, end)
            yield from self._evict_turns(base)
            done = end
        self._queue_turns(base, done, len(self.turns))
        self.base = base

    def ask(
        self, text: str, *, sampling: Sampling | None = None, max_tokens: int = 2048, allow_repetition: bool = True
    ) -> Generator[Prefill | TurnsEvicted | Token | Answer, None, None]:
        """Ask a question and yield the answer token by token.

        Evicts the turns first if question and answer do not fit. If the generator is closed or interrupted, the partial
        answer becomes a turn; without any token the question stays ``unanswered``.

        Raises:
            InputError: an empty question.
            TooLongError: the question does not fit even without turns, or the recipe evicts nothing and the window is
                full.
        """
        if not text.strip():
            raise InputError("the question is empty", "type a question, or /help")
        yield from self.open()
        base = self._opened()
        longest, evicted = yield from self._make_room(base, text, max_tokens)
        if evicted:
            yield TurnsEvicted(self.evictions[-1], evicted)
        self.unanswered = text
        self.changed()
        earlier = [said for turn in self.turns[-1:] for said in (turn.question, turn.answer)]
        how: dict[str, Any] = {"sampling": sampling, "max_tokens": longest, "allow_repetition": allow_repetition}
        quoted = base.by_quotes(text, earlier, **how)
        yield from self._answer(base, text, **how) if quoted is None else self._quoted(base, text, quoted)

    def retry(
        self, *, sampling: Sampling | None = None, max_tokens: int = 2048, allow_repetition: bool = True
    ) -> Generator[Prefill | TurnsEvicted | Token | Answer, None, None]:
        """Ask the last question again, without its answer. Raises ``InputError`` if there is none."""
        text = self.unanswered
        if text is None:
            text = self.undo().question
        yield from self.ask(text, sampling=sampling, max_tokens=max_tokens, allow_repetition=allow_repetition)

    def undo(self) -> Turn:
        """Remove and return the last turn. Raises ``InputError`` if there is none.

        Free for turns in the decode cache, which is restored bit for bit; to undo an evicted turn, the context is
        created anew.
        """
        if not self.turns:
            raise InputError("there is no turn yet", "ask something")
        turn = self.turns.pop()
        self.unanswered = None
        if self._begun:
            begun = self._begun.pop()
            del self._ids[begun.ids :]
            if self.cache is not None:
                self.cache.rewind(min(begun.held, self.cache.length))
        if self.evictions and self.evictions[-1] > len(self.turns):
            self.evictions = [end for end in self.evictions if end <= len(self.turns)]
            self.forget_context()
        self.changed()
        return turn

    def clear(self) -> None:
        """Remove all turns and keep the document."""
        if self.evictions:
            self.forget_context()
        elif self.cache is not None:
            self.cache.rewind()
        self.turns, self.evictions, self.unanswered = [], [], None
        self._ids, self._begun = [], []
        self.changed()

    def forget_context(self) -> None:
        """Create the context anew at the next question, as the document or the system message has changed."""
        self.base = self.context = self.cache = None
        self._ids, self._begun = [], []

    def _opened(self) -> ChatContext:
        assert self.base is not None
        return self.base

    def _start_from(self, context: Context | None) -> None:
        self.context = context
        self.cache = new_decode_cache(self.model, context)
        self._ids, self._begun = [], []

    def _queue_turns(self, base: ChatContext, first: int, end: int) -> None:
        """Queue turns, to be read with the next question."""
        for i, turn in enumerate(self.turns[first:end], first):
            begun = _TurnStart(len(self._ids), len(self._ids))
            self._ids += self._question(base, turn.question, first=i == 0)
            self._ids += turn.ids or base.prompt.reply(turn.answer)
            self._begun.append(begun)

    def _question(self, base: ChatContext, text: str, *, first: bool, again: Sequence[str] = ()) -> list[int]:
        if first:
            return base.prompt.question(text, document=base.document, passages=again)
        return base.prompt.follow_up(text, passages=again)

    def _make_room(self, base: ChatContext, text: str, max_tokens: int) -> Generator[Prefill, None, tuple[int, int]]:
        """Evict turns if necessary; return the maximum answer length and the number of evicted tokens."""
        needed = len(self._question(base, text, first=not self.turns))
        wanted = min(max_tokens, base.room // 2)
        evicted = 0
        if self._ids and self.used + needed + wanted > base.room and base.total is None:
            evicted = self.used
            try:
                yield from self._evict_turns(base)
            except BaseException:
                self.forget_context()  # layers may differ in what they have read
                raise
            self.evictions.append(len(self.turns))
        left = base.room - self.used - needed
        if left < 1:
            if base.total is not None and self._ids:
                raise TooLongError(
                    f"'{base.recipe}' evicts nothing, and the chat fills the context ({base.total:,} tokens)",
                    "/clear, or start with --policy keydiff",
                )
            raise TooLongError(
                f"the message has {needed:,} tokens, and with its answer at most {base.room:,} fit",
                "/add FILE, for a long text",
            )
        return min(max_tokens, left), evicted

    def _evict_turns(self, base: ChatContext) -> Generator[Prefill, None, None]:
        base.context = self.context = self.cache = None  # the prefill cache replaces them
        context = yield from evict_turns(self.model, base.work, self._ids, base.recipe, chunk=base.chunk)
        self._start_from(context)

    def _quoted(self, base: ChatContext, text: str, events: Iterator[Event]) -> Generator[Token | Answer, None, None]:
        """Answer from quotes alone; the model reads question and answer with its next turn."""
        parts, answer = list[str](), None
        try:
            for event in events:
                if isinstance(event, Answer):
                    answer = event
                elif isinstance(event, Token):
                    parts.append(event.text)
                    yield event
        finally:
            if said := answer.text if answer else "".join(parts):
                finish, tps = (answer.finish_reason, answer.decode_tps) if answer else ("interrupted", 0.0)
                self.turns.append(Turn(text, said, tuple(base.prompt.reply(said)), finish, round(tps, 2)))
                self._queue_turns(base, len(self.turns) - 1, len(self.turns))
                self.unanswered = None
                self.changed()
        assert answer is not None
        yield answer

    def _answer(
        self, base: ChatContext, text: str, sampling: Sampling | None, max_tokens: int, allow_repetition: bool
    ) -> Generator[Token | Answer, None, None]:
        assert self.cache is not None
        begun = _TurnStart(len(self._ids), self.cache.length)
        first, pending = not self.turns, self._ids[self.cache.length :]
        again: Sequence[str] = ()
        visible = self.context
        if base.reread and base.document and self.context:
            again, visible = base.reread(self.context, text)
            if again and pending:
                append_tokens(self.model, self.cache, pending, chunk=base.chunk)
                pending = []
        self._ids += self._question(base, text, first=first)
        made: list[int] = []
        parts: list[str] = []
        answer: Answer | None = None
        began, read = perf_counter(), self.cache.length
        self.cache.set_context(visible)
        events = generate(
            self.model,
            self.cache,
            pending + self._question(base, text, first=first, again=again),
            sampling=sampling,
            max_tokens=max_tokens,
            chunk=base.chunk,
            allow_repetition=allow_repetition,
            stop=PLAIN_STOPS if base.prompt.plain else (),
            drafts=np.concatenate((as_ids(base.draft_ids), as_ids(self._ids))),
        )
        try:
            for event in events:
                if isinstance(event, Answer):
                    answer = event
                else:
                    made += [event.id] * (event.id >= 0)
                    parts.append(event.text)
                    yield event
        finally:
            seconds = perf_counter() - began
            self.cache.set_context(self.context)
            self.cache.rewind(self.cache.length)  # recurrent layers may be ahead of an interrupted step
            cut = answer is not None and (answer.cut or base.prompt.plain)  # a stop text is no part of the answer
            if cut:  # the next turn reads the text that was kept
                made = base.prompt.reply(answer.text if answer else "")
            if answer is None and not made:
                del self._ids[begun.ids :]
                self.cache.rewind(min(begun.held, self.cache.length))
            else:
                if again or cut:  # remove the passages but keep earlier turns
                    self.cache.rewind(read)
                self._ids += made
                self._begun.append(begun)
                finish = answer.finish_reason if answer else "interrupted"
                tps = answer.decode_tps if answer else len(made) / max(seconds, 1e-9)
                self.turns.append(Turn(text, "".join(parts), tuple(made), finish, round(tps, 2)))
                self.unanswered = None
                self.changed()
        assert answer is not None
        yield answer
