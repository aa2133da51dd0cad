"""Turns behind a document: asked, undone, asked again, absorbed. Without a screen and without a file.

ground      document, frozen, and its fill kept to be read on in
absorbed    turns that have been evicted into it
tail        turns since then, exact and rewindable
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter

from kvcli.cache.context import Context
from kvcli.cache.decode_cache import DecodeCache
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.chat.transcript import Turn
from kvcli.engine.generate import append_tokens, generate, new_decode_cache
from kvcli.engine.prefill import evict_turns
from kvcli.engine.prompt import Prompt
from kvcli.engine.sampling import Sampling
from kvcli.errors import InputError, TooLongError
from kvcli.events import Answer, Prefill, Token, TurnsEvicted
from kvcli.models.model import Model
from kvcli.recipe import Recipe


@dataclass
class ChatContext:
    """What a conversation stands on.

    Attributes:
        prompt: how the model is spoken to.
        recipe: what survives of the document, and of turns that are absorbed.
        chunk: tokens per forward pass.
        work: the fill of the document, not to be used elsewhere; an empty one where there is no document.
        context: frozen from ``work``, until turns are evicted into it; ``None`` where there is no document.
        room: tokens that the turns may take before they are absorbed.
        total: tokens that the document and all turns may take, for recipes that evict nothing; ``None`` for no end.
        look: passages of the document to be read again before a question. They are read for its answer and leave no
            trace: what stands in the tail afterwards are question and answer. Their tokens are not the room's. With
            them comes what the question and its answer see in place of the whole context.
    """

    prompt: Prompt
    recipe: Recipe
    chunk: int
    work: PrefillCache
    context: Context | None
    room: int
    total: int | None = None
    look: Callable[[Context, str], tuple[Sequence[str], Context]] | None = None

    def __post_init__(self) -> None:
        self.document = self.context is not None


@dataclass(frozen=True)
class _TurnStart:
    """Where a turn begins: in the ids, and how much of them the tail held by then."""

    ids: int
    held: int


class Conversation:
    """A conversation. Not safe for two threads.

    Args:
        model: a loaded model.
        ground: makes the ground anew; called at :meth:`open`, and again when turns are to be forgotten that have
            been absorbed, which is cheap where the document's reading is saved.
        turns, absorbed: of an earlier conversation (see :class:`kvcli.chat.transcript.Transcript`).
        unanswered: its question without an answer.
        changed: called after each change of these, to save them.
    """

    def __init__(
        self,
        model: Model,
        ground: Callable[[], ChatContext],
        *,
        turns: Sequence[Turn] = (),
        absorbed: Sequence[int] = (),
        unanswered: str | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self._make, self.changed = model, ground, changed
        self.turns, self.absorbed, self.unanswered = list(turns), list(absorbed), unanswered
        self.ground: ChatContext | None = None
        self.context: Context | None = None
        self.tail: DecodeCache | None = None
        self._ids: list[int] = []
        self._begun: list[_TurnStart] = []

    @property
    def used(self) -> int:
        """Tokens of the turns that are not absorbed."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Bytes of context, tail and the fill that is kept beside them."""
        work = None if self.ground is None else self.ground.work
        return sum(part.nbytes for part in (self.context, self.tail, work) if part is not None)

    def open(self) -> Generator[Prefill, None, None]:
        """Stand on the ground and read the turns there are, absorbing those that were; yields while it absorbs.

        A conversation opens itself at the first question; open it before to have that waited for.
        """
        if self.ground is not None:
            return
        ground = self._make()
        self._stand(ground.context)
        done = 0
        for end in self.absorbed:
            self._retell(ground, done, end)
            yield from self._absorb(ground)
            done = end
        self._retell(ground, done, len(self.turns))
        self.ground = ground

    def ask(
        self, text: str, *, sampling: Sampling | None = None, max_tokens: int = 2048, allow_repetition: bool = True
    ) -> Generator[Prefill | TurnsEvicted | Token | Answer, None, None]:
        """Ask, and answer token by token.

        Where the tail has no room left for the question and an answer, it is absorbed first. Closing the generator or
        interrupting it keeps what there is of the answer as a turn; if there is nothing, the question stays
        ``unanswered``.

        Raises:
            InputError: an empty question.
            TooLongError: the question has no room even behind an empty tail, or nothing may be evicted any more.
        """
        if not text.strip():
            raise InputError("the question is empty", "type a question, or /help")
        yield from self.open()
        ground = self._opened()
        longest, absorbed = yield from self._make_room(ground, text, max_tokens)
        if absorbed:
            yield TurnsEvicted(self.absorbed[-1], absorbed)
        self.unanswered = text
        self.changed()
        yield from self._answer(ground, text, sampling, longest, allow_repetition)

    def retry(
        self, *, sampling: Sampling | None = None, max_tokens: int = 2048, allow_repetition: bool = True
    ) -> Generator[Prefill | TurnsEvicted | Token | Answer, None, None]:
        """Ask the last question again, as if it had not been answered. Raises ``InputError`` where there is none."""
        text = self.unanswered
        if text is None:
            text = self.undo().question
        yield from self.ask(text, sampling=sampling, max_tokens=max_tokens, allow_repetition=allow_repetition)

    def undo(self) -> Turn:
        """Forget the last turn; returns it. Raises ``InputError`` where there is none.

        Free for turns in the tail, which is then as it was, bit for bit; one that was absorbed is forgotten by
        standing on the ground anew.
        """
        if not self.turns:
            raise InputError("there is no turn yet", "ask something")
        turn = self.turns.pop()
        self.unanswered = None
        if self._begun:
            begun = self._begun.pop()
            del self._ids[begun.ids :]
            if self.tail is not None:
                self.tail.rewind(min(begun.held, self.tail.length))
        if self.absorbed and self.absorbed[-1] > len(self.turns):
            self.absorbed = [end for end in self.absorbed if end <= len(self.turns)]
            self.forget_ground()
        self.changed()
        return turn

    def clear(self) -> None:
        """Forget all turns and keep the document."""
        if self.absorbed:
            self.forget_ground()
        elif self.tail is not None:
            self.tail.rewind()
        self.turns, self.absorbed, self.unanswered = [], [], None
        self._ids, self._begun = [], []
        self.changed()

    def forget_ground(self) -> None:
        """Stand on the ground anew when next asked: the document or what the model is told has changed."""
        self.ground = self.context = self.tail = None
        self._ids, self._begun = [], []

    # --- within ---

    def _opened(self) -> ChatContext:
        assert self.ground is not None
        return self.ground

    def _stand(self, context: Context | None) -> None:
        self.context = context
        self.tail = new_decode_cache(self.model, context)
        self._ids, self._begun = [], []

    def _retell(self, ground: ChatContext, first: int, end: int) -> None:
        """Put turns behind what there is, to be read when next something is asked."""
        for i, turn in enumerate(self.turns[first:end], first):
            begun = _TurnStart(len(self._ids), len(self._ids))
            self._ids += self._question(ground, turn.question, first=i == 0)
            self._ids += turn.ids or ground.prompt.reply(turn.answer)
            self._begun.append(begun)

    def _question(self, ground: ChatContext, text: str, *, first: bool, again: Sequence[str] = ()) -> list[int]:
        if first:
            return ground.prompt.question(text, document=ground.document, passages=again)
        return ground.prompt.follow_up(text, passages=again)

    def _make_room(self, ground: ChatContext, text: str, max_tokens: int) -> Generator[Prefill, None, tuple[int, int]]:
        """How long the answer may be, and how many tokens were absorbed for it."""
        needed = len(self._question(ground, text, first=not self.turns))
        wanted = min(max_tokens, ground.room // 2)
        absorbed = 0
        if self._ids and self.used + needed + wanted > ground.room and ground.total is None:
            absorbed = self.used
            try:
                yield from self._absorb(ground)
            except BaseException:
                self.forget_ground()  # one layer may have read more than another
                raise
            self.absorbed.append(len(self.turns))
        left = ground.room - self.used - needed
        if left < 1:
            if ground.total is not None and self._ids:
                raise TooLongError(
                    f"'{ground.recipe}' evicts nothing, and the chat fills the context ({ground.total:,} tokens)",
                    "/clear, or start with --policy keydiff",
                )
            raise TooLongError(
                f"the message has {needed:,} tokens, and with its answer at most {ground.room:,} fit",
                "/add FILE, for a long text",
            )
        return min(max_tokens, left), absorbed

    def _absorb(self, ground: ChatContext) -> Generator[Prefill, None, None]:
        ground.context = self.context = self.tail = None  # what comes is read from the fill, and takes their place
        context = yield from evict_turns(self.model, ground.work, self._ids, ground.recipe, chunk=ground.chunk)
        self._stand(context)

    def _answer(
        self, ground: ChatContext, text: str, sampling: Sampling | None, longest: int, allow_repetition: bool
    ) -> Generator[Token | Answer, None, None]:
        assert self.tail is not None
        begun = _TurnStart(len(self._ids), self.tail.length)
        first, pending = not self.turns, self._ids[self.tail.length :]
        again: Sequence[str] = ()
        sight = self.context
        if ground.look and ground.document and self.context:
            again, sight = ground.look(self.context, text)
            if again and pending:
                append_tokens(self.model, self.tail, pending, chunk=ground.chunk)
                pending = []
        self._ids += self._question(ground, text, first=first)
        made: list[int] = []
        parts: list[str] = []
        answer: Answer | None = None
        began, read = perf_counter(), self.tail.length
        self.tail.set_context(sight)
        events = generate(
            self.model,
            self.tail,
            pending + self._question(ground, text, first=first, again=again),
            sampling=sampling,
            max_tokens=longest,
            chunk=ground.chunk,
            allow_repetition=allow_repetition,
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
            self.tail.set_context(self.context)
            if answer is None and not made:
                del self._ids[begun.ids :]
                self.tail.rewind(min(begun.held, self.tail.length))
            else:
                if again:  # the turns before it stay read; passages stood behind them
                    self.tail.rewind(read)
                self._ids += made
                self._begun.append(begun)
                finish = answer.finish_reason if answer else "interrupted"
                tps = answer.decode_tps if answer else len(made) / max(seconds, 1e-9)
                self.turns.append(Turn(text, "".join(parts), tuple(made), finish, round(tps, 2)))
                self.unanswered = None
                self.changed()
        assert answer is not None
        yield answer
