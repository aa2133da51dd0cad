"""One chat: questions, answers on the screen, and the saved conversation."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kvcli.chat import transcript
from kvcli.chat.reasoning import ReasoningSplitter, strip_reasoning
from kvcli.cli.setup import banner, show_quotes
from kvcli.cli.signals import DeferredSignals, Interrupted
from kvcli.cli.views import citations, terminal
from kvcli.cli.views import quotes as quote_lines
from kvcli.cli.views.activity import row
from kvcli.cli.views.markdown import PlainAnswer, TerminalAnswer
from kvcli.documents.cited_answer import CitedAnswer, cite_answer
from kvcli.documents.quotes import QuoteIndex
from kvcli.errors import InputError, KvcliError, UsageError
from kvcli.events import Answer, Prefill, Token, TurnsEvicted
from kvcli.pipeline import Citations
from kvcli.utils import process_memory
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from kvcli.chat.conversation import Conversation
    from kvcli.chat.transcript import Transcript
    from kvcli.cli.chat.setup import ChatSetup
    from kvcli.events import Quote, Quotes
    from kvcli.retrieval.attribution import LikelySource

T = TypeVar("T")

SAMPLING = {"temp": "temperature", **{name: name for name in ("top_p", "top_k", "min_p", "seed", "repeat_penalty")}}


class ChatSession:
    """A conversation on a terminal or in a pipe.

    Args:
        setup: documents, model and recipe.
        saved: the conversation to continue, or a new one.
        path: where it is saved.
        given: sampling settings; ``None`` for those of the model.
        interactive: whether standard input is a terminal.
    """

    def __init__(
        self, setup: ChatSetup, saved: Transcript, path: Path, given: dict[str, Any] | None, *, interactive: bool
    ) -> None:
        self.setup, self.saved, self.path, self.interactive = setup, saved, path, interactive
        self.quiet = setup.options.quiet
        self.max_tokens, self.allow_repetition = setup.options.max_tokens, setup.options.allow_repetition
        self.hide_thoughts = saved.hide_thoughts
        self.cite = setup.options.cite
        self.given = saved.sampling if given is None else given
        self.tps = 0.0
        self.failed = 0
        self.answers = 0
        self.shown: tuple[Quote, ...] = ()
        self._index: QuoteIndex | None = None
        self._told = False
        self._lock = ExitStack()
        self.conversation = self._conversation()

    def _conversation(self) -> Conversation:
        from kvcli.chat.conversation import Conversation

        spec = self.setup.model.spec
        same = self.saved.fingerprint in (spec.fingerprint, spec.former_fingerprint)
        return Conversation(
            self.setup.model,
            self.setup.context,
            turns=self.saved.turns if same else [_by_words(turn) for turn in self.saved.turns],
            evictions=self.saved.absorbed,
            unanswered=self.saved.unanswered,
            changed=self.save,
        )

    # --- before and after ---

    def open(self) -> None:
        """Process the document, or load its saved prefill, and the saved turns."""
        self._lock.enter_context(transcript.locked(self.path))
        banner(self.setup.run)
        with DeferredSignals() as signals:
            for _ in self.conversation.open():
                if signals.cause is not None:
                    break
        if signals.cause is not None:
            raise Interrupted("interrupted while loading the turns", "kvcli chat -c", cause=signals.cause)
        turns = len(self.conversation.turns)
        if turns:
            terminal.note("session", f"{self.path.stem} · {terminal.plural(turns, 'turn')}", quiet=self.quiet)
        if self.conversation.unanswered is not None:
            terminal.note("session", "the last question was not answered; /retry asks it again", quiet=self.quiet)

    def recall(self, turns: int = 1) -> None:
        """Print the last turns of the conversation, dim."""
        for turn in self.conversation.turns[-turns:]:
            answer = self._without_reasoning(turn.answer)
            for text in (f"> {short(turn.question)}", *answer.strip().split("\n")):
                terminal.paragraph(sys.stdout, terminal.strip_control(text), "dim")

    def cited_turn(self, turn: transcript.Turn) -> tuple[str, list[str]]:
        """An answer with the numbers of its citations, and these, one line each."""
        document = self.setup.document
        if document is None:
            return turn.answer, []
        cited, body = self._cited(turn.answer, turn.question), self._without_reasoning(turn.answer)
        head, found, tail = turn.answer.rpartition(body)
        return head + cited.text + tail if found else turn.answer, citations.lines(document, cited)

    def _without_reasoning(self, answer: str) -> str:
        return strip_reasoning(answer, thinking=self.setup.prompt.thinks)

    def close(self) -> None:
        """Release the session for other processes."""
        self._lock.close()

    def move(self, path: Path) -> None:
        """Save under another name from now on. Raises ``UsageError`` if that exists or is open."""
        if path.exists() and path != self.path:
            raise UsageError(f"the session {path.stem} already exists", "/save ANOTHER")
        if path != self.path:
            self._lock_only(path)
        self.path = path
        self.save()

    def _lock_only(self, path: Path) -> None:
        """Lock another file, and then release the one before. Raises ``UsageError`` if it is open elsewhere."""
        with ExitStack() as lock:
            lock.enter_context(transcript.locked(path))
            self._lock, before = lock.pop_all(), self._lock
        before.close()

    def load(self, path: Path, found: Transcript) -> None:
        """Switch to another conversation about the same documents.

        Raises:
            UsageError: its files or options differ, or it is open in another process.
        """
        for name in ("files", "added", "options", "system"):
            one, two = (transcript.absolute(r) if name == "files" else getattr(r, name) for r in (found, self.saved))
            if one != two:
                raise UsageError(f"the session {path.stem} has other {name}", f"kvcli chat --session {path.stem}")
        self._lock_only(path)
        self.saved, self.path, self.given = found, path, found.sampling
        self.hide_thoughts = found.hide_thoughts
        self.conversation = self._conversation()

    def save(self) -> None:
        """Save the conversation; an error of the disk is printed once and does not end the chat."""
        saved, chat, setup = self.saved, self.conversation, self.setup
        saved.turns, saved.absorbed, saved.unanswered = chat.turns, chat.evictions, chat.unanswered
        saved.fingerprint, saved.sampling = setup.model.spec.fingerprint, self.given
        saved.system, saved.added = setup.options.system, setup.added
        saved.hide_thoughts = self.hide_thoughts
        try:
            transcript.save(self.path, saved)
        except OSError as error:
            if not self._told:
                self._told = True
                terminal.warn(f"the conversation cannot be saved: {error.strerror or error} ({self.path})")

    # --- questions ---

    def ask(self, text: str) -> None:
        """Ask a question and show its answer. Ctrl-C stops the answer and keeps the partial text."""
        self._show(self.conversation.ask(text, **self._how()), text)

    def retry(self) -> None:
        """Ask the last question again."""
        text = self.conversation.unanswered or (self.conversation.turns[-1].question if self.conversation.turns else "")
        if text:
            terminal.note("again", short(text), quiet=self.quiet)
        self._show(self.conversation.retry(**self._how()), text)

    def _how(self) -> dict[str, Any]:
        return {"sampling": self.sampling(), "max_tokens": self.max_tokens, "allow_repetition": self.allow_repetition}

    def sampling(self) -> Any:
        """Sampling of the next answer. Raises ``UsageError``."""
        from kvcli.engine.sampling import Sampling

        return Sampling(**self.settings())

    def settings(self) -> dict[str, Any]:
        """The settings of sampling: those that were given, else those of the model."""
        return self.setup.sampling() if self.given is None else self.given

    def _show(self, events: Generator[Prefill | TurnsEvicted | Token | Answer, None, None], question: str) -> None:
        shown = _screen()
        index = self._quote_index() if self.cite else None
        citing = None if index is None else CitedAnswer(index, question)
        splitter = ReasoningSplitter(thinking=self.setup.prompt.thinks)
        begun = above = False
        found: Quotes | None = None
        held = list[str]() if self._holds else None
        if held is not None and self.interactive and self.setup.document is not None:
            earlier = tuple((turn.question, "") for turn in self.conversation.turns[-1:])
            show_quotes(replace(self.setup.options, history=earlier), self.setup.document, question)

        def write(pieces: list[tuple[str, bool]]) -> None:
            for text, reasoning in pieces:
                if reasoning and self.hide_thoughts:
                    shown.wait("thinking …")
                elif held is not None and not reasoning:
                    held.append(text)
                    shown.wait("writing the answer")
                elif reasoning or citing is None:
                    shown.write(text, reasoning=reasoning)
                else:
                    shown.write(citing.push(text))

        def end() -> None:
            row.keep_above(None)
            if held and citing is not None:
                shown.write(citing.push("".join(held)))
            if citing is not None:
                shown.write(citing.end())
            shown.end()

        if self.interactive and not self.quiet:
            row.start("thinking")
        if self.answers and not self.interactive:
            sys.stdout.write("\n")  # a blank line between answers
        try:
            for event in events:
                if isinstance(event, TurnsEvicted):
                    shown.wait("")
                    self._evicted(event)
                elif isinstance(event, Token):
                    begun = True
                    write(splitter.push(event.text))
                elif isinstance(event, Prefill):
                    shown.wait(f"reading your message {event.done:,}/{event.total:,}")
                elif isinstance(event, Answer):
                    self.answers += 1
                    self.tps = event.decode_tps
                    write(splitter.flush())
                    if held is None:
                        end()
                    cited = self._cited(event.text, question) if self.cite else Citations()
                    if self.cite:
                        found = self._quotes_for(event.text)
                    if held is not None:
                        above = found is not None and not quote_lines.covered(found, cited)
                        if found is not None and above:
                            row.keep_above(None)
                            self._tell_quotes(found, cited, above=True)
                            sys.stdout.write("\n")
                        end()
                    self._tell(citations.lines, cited)
                    if found is not None and not above:
                        self._tell_quotes(found, cited)
                    if self.cite and not cited.grounded:
                        likely = self._look_for("sources", lambda: self._likely(self.conversation.turns[-1]))
                        self._tell(citations.likely, replace(cited, likely_sources=likely or ()))
                    if event.stopped_repeating:
                        terminal.warn(
                            f"the answer started repeating itself and was stopped after {event.completion_tokens:,}"
                            " tokens; try /set repeat_penalty 1.1, or a larger model",
                            quiet=self.quiet,
                        )
                    elif event.finish_reason == "length":
                        terminal.warn(
                            f"the answer was truncated at {event.completion_tokens:,} tokens; try /set max_tokens"
                            f" {2 * event.completion_tokens}",
                            quiet=self.quiet,
                        )
        except KeyboardInterrupt:
            events.close()
            if begun:
                end()
            else:
                shown.wait("")
            kept = "the partial answer is kept" if begun else "before the answer began"
            terminal.note("stopped", f"{kept}; /retry to try again", quiet=self.quiet)
            if not self.interactive:
                raise
        except BaseException:
            with suppress(Exception):
                events.close()
            if begun:
                end()
            raise
        finally:
            row.keep_above(None)

    # --- sources ---

    def sources(self, number: int | None = None) -> list[str]:
        """Citations and likely sources of an answer, by default the last one.

        Raises:
            InputError: there is no such turn, or no document.
        """
        document, turns = self.setup.document, self.conversation.turns
        if document is None:
            raise InputError("there is no document", "/add FILE")
        if not turns:
            raise InputError("there is no turn yet", "ask something")
        number = len(turns) if number is None else number
        if not 1 <= number <= len(turns):
            raise InputError(f"there is no turn {number:,}; turns are 1 to {len(turns):,}", "/sources")
        turn = turns[number - 1]
        cited = replace(self._cited(turn.answer, turn.question), likely_sources=self._likely(turn), grounded=None)
        return citations.lines(document, cited) + citations.likely(document, cited)

    def _cited(self, answer: str, question: str) -> Citations:
        index = self._quote_index()
        if index is None:
            return Citations()
        text, quotes = cite_answer(index, self._without_reasoning(answer), question)
        return Citations(tuple(quotes), (), any(quote.status == "verified" for quote in quotes), text)

    def _quote_index(self) -> QuoteIndex | None:
        document = self.setup.document
        if document is not None and (self._index is None or self._index.document is not document):
            self._index = QuoteIndex(document)
        return None if document is None else self._index

    def _likely(self, turn: transcript.Turn) -> tuple[LikelySource, ...]:
        """Pages that an answer attends to, computed as if its question were the first one."""
        from kvcli.retrieval.attribution import attribute

        setup = self.setup
        for _ in self.conversation.open():
            pass
        context, document, prompt = self.conversation.context, setup.document, setup.prompt
        if context is None or document is None:
            return ()
        text = strip_reasoning(turn.answer, thinking=prompt.thinks)
        return tuple(attribute(setup.model, prompt, context, document, turn.question, text, tokens=setup.tokens))

    def _look_for(self, what: str, look: Callable[[], T]) -> T | None:
        """Look for something after an answer, and say so. Ctrl-C ends the search, and in a pipe the chat."""
        waiting = _screen()
        waiting.wait(f"looking for {what} …")
        try:
            return look()
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            return None
        finally:
            waiting.wait("")

    def _tell(self, lines: Callable[..., list[str]], cited: Citations) -> None:
        """Print lines about citations."""
        document = self.setup.document
        for line in [] if document is None else lines(document, cited, sys.stdout):
            terminal.paragraph(sys.stdout, line, "dim", indent=4)

    def find_quotes(self, count: int, answer: str | None = None) -> Quotes:
        """The sentences that may answer the last question; those that support ``answer`` first.

        Raises:
            InputError: there is no document, or no question yet.
        """
        document, chat = self.setup.document, self.conversation
        asked = [turn.question for turn in chat.turns] + ([] if chat.unanswered is None else [chat.unanswered])
        if document is None:
            raise InputError("there is no document", "/add FILE")
        if not asked:
            raise InputError("there is no question yet", "ask something")
        earlier = [*asked[-2:-1], *(quote.text for quote in self.shown[:1])] if len(asked) > 1 else []
        pipeline = self.setup.run.pipeline
        return pipeline.find_quotes(document, asked[-1], answer=answer, count=count, earlier=earlier)

    def show_quotes(self, quotes: Sequence[Quote], question: str) -> None:
        """Print quotes with their numbers for ``/open``."""
        document = self.setup.document
        assert document is not None
        self.shown = tuple(quotes)
        bold = terminal.is_terminal(sys.stdout)
        for number, line in enumerate(quote_lines.lines(document, quotes, question, bold=bold, links=sys.stdout), 1):
            terminal.paragraph(sys.stdout, f"{number}. {line}", indent=3)

    @property
    def _holds(self) -> bool:
        """Whether an answer is printed when it is complete: quotes that do not cover it stand before it."""
        from kvcli.models import defaults

        quoting = self.cite and self.setup.document is not None and self.setup.options.quotes
        return bool(quoting) and self.setup.model.name in defaults.ASKED_BY_EXAMPLES

    def _quotes_for(self, answer: str) -> Quotes | None:
        """The quotes of an answer; ``None`` if none are wanted, or after Ctrl-C."""
        count, text = self.setup.options.quotes, self._without_reasoning(answer)
        if self.setup.document is None or not count:
            return None
        return self._look_for("quotes", lambda: self.find_quotes(count, text))

    def _tell_quotes(self, found: Quotes, cited: Citations, *, above: bool = False) -> None:
        """Print the quotes of an answer that its citations do not show."""
        if left_out := quote_lines.uncited(found, cited):
            terminal.write(sys.stdout, quote_lines.heading(found, cited, above=above), "dim")
            self.show_quotes(left_out, self.conversation.turns[-1].question)
        else:
            self.shown = found.quotes

    def _evicted(self, event: TurnsEvicted) -> None:
        """Print the first eviction of turns; later ones are not printed."""
        if len(self.conversation.evictions) == 1:
            text = (
                f"{terminal.plural(event.turns, 'turn')} ({terminal.count(event.tokens)} tokens) were compressed to"
                " free memory; details may be lost"
            )
            terminal.note("evicted", text, quiet=self.quiet)

    # --- what is known ---

    def status(self) -> str:
        """The status line: model, policy and kept tokens of a document, turns, memory, speed."""
        setup, conversation = self.setup, self.conversation
        used, total = process_memory.used_and_total(setup.model.spec.device)
        context = conversation.context
        parts = [Path(setup.model.name).name]  # the name of a directory, not its path
        if context is not None:
            parts += [setup.recipe.policy.name, f"kept {context.kept:,} of {context.seen:,}"]
        parts.append(terminal.plural(len(conversation.turns), "turn"))
        parts.append(f"{used / 2**30:.1f}/{total / 2**30:.1f} GiB")
        if self.tps:
            parts.append(f"{self.tps:.1f} tok/s")
        return " · ".join(parts)

    def memory(self) -> list[tuple[str, str]]:
        """Memory use, by name."""
        conversation, spec = self.conversation, self.setup.model.spec
        used, total = process_memory.used_and_total(spec.device)
        work = None if conversation.base is None else conversation.base.work
        rows = [
            ("weights", format_bytes(spec.weight_bytes)),
            ("KV cache", format_bytes(conversation.context.nbytes if conversation.context else 0)),
            ("RAM", format_bytes(conversation.context.host_nbytes if conversation.context else 0)),
            ("prefill", format_bytes(work.nbytes if work else 0)),
            ("turns", format_bytes(conversation.cache.nbytes if conversation.cache else 0)),
        ]
        return [*rows, ("in use", f"{format_bytes(used)} of {format_bytes(total)} on {spec.device}")]

    def stats(self) -> list[tuple[str, str]]:
        """Facts of the conversation, by name."""
        conversation, setup = self.conversation, self.setup
        made = sum(len(turn.ids) for turn in conversation.turns)
        sampling = ", ".join(f"{k} {v:g}" for k, v in self.settings().items() if v is not None) or "greedy"
        rows = [("session", f"{self.path.stem} · {self.path}")]
        if setup.tokens:
            rows.append(("read", setup.reading))
        room = f" of {conversation.base.room:,}" if conversation.base else ""
        return [
            *rows,
            (
                "turns",
                f"{len(conversation.turns):,}, {[0, *conversation.evictions][-1]:,} of them compressed",
            ),
            ("tokens", f"{conversation.used:,}{room} before turns are compressed · {made:,} generated"),
            ("sampling", f"{sampling} · at most {self.max_tokens:,} tokens"),
            *([("speed", f"{self.tps:.1f} tok/s")] if self.tps else []),
        ]

    def problem(self, problem: KvcliError) -> None:
        """Print the error of one line."""
        self.failed += 1
        terminal.error(problem)


def _screen() -> TerminalAnswer | PlainAnswer:
    return TerminalAnswer() if terminal.is_terminal(sys.stdout) else PlainAnswer()


def _by_words(turn: transcript.Turn) -> transcript.Turn:
    """A turn of another model, without its token ids."""
    return transcript.Turn(**{**asdict(turn), "ids": ()})


def short(text: str) -> str:
    """A message in one row: a paste may have thousands of lines."""
    text = terminal.oneline(text)
    return text if len(text) <= 60 else f"{text[:56]} … ({len(text):,} characters)"
