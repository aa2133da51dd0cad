"""One chat from the first question to the last: what is asked, how it is shown, and what is saved of it."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli.chat import transcript
from kvcli.chat.reasoning import ReasoningSplitter, strip_reasoning
from kvcli.cli.chat.markdown_stream import PlainAnswer, TerminalAnswer
from kvcli.cli.signals import DeferredSignals, Interrupted
from kvcli.cli.views import citations, terminal
from kvcli.documents.quotes import QuoteIndex
from kvcli.errors import InputError, KvcliError, ResourceError, UsageError
from kvcli.events import Answer, Prefill, Token, TurnsEvicted
from kvcli.pipeline import Citations
from kvcli.utils import process_memory
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Generator

    from kvcli.chat.conversation import Conversation
    from kvcli.chat.transcript import Transcript
    from kvcli.cli.chat.setup import ChatSetup
    from kvcli.retrieval.attribution import LikelySource

SAMPLING = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed"}


class ChatSession:
    """A conversation with a person or a script.

    Args:
        setup: documents, model and recipe.
        saved: the conversation to go on with, or a new one.
        path: where it is saved.
        given: sampling that was asked for; ``None`` for the model's own.
        interactive: whether a person types.
    """

    def __init__(
        self, setup: ChatSetup, saved: Transcript, path: Path, given: dict[str, Any] | None, *, interactive: bool
    ) -> None:
        self.setup, self.saved, self.path, self.interactive = setup, saved, path, interactive
        self.quiet = setup.options.quiet
        self.max_tokens, self.allow_repetition = setup.options.max_tokens, setup.options.allow_repetition
        self.hide_thoughts = saved.hide_thoughts
        self.cite = setup.options.cite != "off"
        self.given = saved.sampling if given is None else given
        self.tps = 0.0
        self.failed = 0
        self.answers = 0
        self._index: QuoteIndex | None = None
        self._told = False
        self._lock = ExitStack()
        self.talk = self._conversation()

    def _conversation(self) -> Conversation:
        from kvcli.chat.conversation import Conversation

        same = self.saved.fingerprint == self.setup.model.spec.fingerprint
        return Conversation(
            self.setup.model,
            self.setup.context,
            turns=self.saved.turns if same else [_by_words(turn) for turn in self.saved.turns],
            absorbed=self.saved.absorbed,
            unanswered=self.saved.unanswered,
            changed=self.save,
        )

    # --- before and after ---

    def open(self) -> None:
        """Read the document, or take its reading up, and the turns there are."""
        self._lock.enter_context(transcript.locked(self.path))
        self.setup.banner()
        with DeferredSignals() as patience:
            for _ in self.talk.open():
                if patience.cause is not None:
                    break
        if patience.cause is not None:
            raise Interrupted("interrupted while taking the turns up", "kvcli chat -c", cause=patience.cause)
        if self.setup.tokens:
            terminal.note("read", self.setup.report.reading(), quiet=self.quiet)
        turns = len(self.talk.turns)
        if turns:
            terminal.note("session", f"{self.path.stem} · {terminal.plural(turns, 'turn')}", quiet=self.quiet)
        if self.talk.unanswered is not None:
            terminal.note("session", "the last question has no answer yet: /retry asks it again", quiet=self.quiet)

    def close(self) -> None:
        """Let another process have the session."""
        self._lock.close()

    def move(self, path: Path) -> None:
        """Save this conversation elsewhere from now on. Raises ``UsageError`` where that is open or there already."""
        if path.exists() and path != self.path:
            raise UsageError(f"there is a session {path.stem} already", "/save ANOTHER")
        with ExitStack() as lock:
            if path != self.path:
                lock.enter_context(transcript.locked(path))
                self._lock, before = lock.pop_all(), self._lock
                before.close()
        self.path = path
        self.save()

    def load(self, path: Path, found: Transcript) -> None:
        """Go on with another conversation about the same text.

        Raises:
            UsageError: it is about other files, was read otherwise, or is open in another process.
        """
        for name in ("files", "added", "options", "system"):
            one, two = (transcript.absolute(r) if name == "files" else getattr(r, name) for r in (found, self.saved))
            if one != two:
                raise UsageError(f"the session {path.stem} has other {name}", f"kvcli chat --session {path.stem}")
        with ExitStack() as lock:
            lock.enter_context(transcript.locked(path))
            self._lock, before = lock.pop_all(), self._lock
            before.close()
        self.saved, self.path, self.given = found, path, found.sampling
        self.hide_thoughts = found.hide_thoughts
        self.talk = self._conversation()

    def save(self) -> None:
        """The conversation as it is now; a disk that refuses is said once and does not end it."""
        saved, talk, setup = self.saved, self.talk, self.setup
        saved.turns, saved.absorbed, saved.unanswered = talk.turns, talk.absorbed, talk.unanswered
        saved.fingerprint, saved.sampling = setup.model.spec.fingerprint, self.given
        saved.system, saved.added = setup.options.system, setup.added
        saved.hide_thoughts = self.hide_thoughts
        try:
            transcript.save(self.path, saved)
        except OSError as error:
            if not self._told:
                self._told = True
                terminal.warn(f"this conversation is not saved: {error.strerror or error} ({self.path})")

    # --- questions ---

    def ask(self, text: str) -> None:
        """Put a question and show its answer. Ctrl-C stops the answer and keeps what there is of it."""
        self._show(self.talk.ask(text, **self._how()))

    def retry(self) -> None:
        """The last question again."""
        text = self.talk.unanswered or (self.talk.turns[-1].question if self.talk.turns else "")
        if text:
            terminal.note("again", text, quiet=self.quiet)
        self._show(self.talk.retry(**self._how()))

    def _how(self) -> dict[str, Any]:
        return {"sampling": self.sampling(), "max_tokens": self.max_tokens, "allow_repetition": self.allow_repetition}

    def sampling(self) -> Any:
        """How the next answer is drawn. Raises ``UsageError``."""
        from kvcli.engine.sampling import Sampling

        return Sampling(**self.settings())

    def settings(self) -> dict[str, Any]:
        """Sampling in force: what was asked for, else the model's own."""
        return self.setup.sampling() if self.given is None else self.given

    def _show(self, events: Generator[Prefill | TurnsEvicted | Token | Answer, None, None]) -> None:
        shown = _screen()
        thoughts = ReasoningSplitter(thinking=self.setup.prompt.thinks)
        begun = False

        def write(pieces: list[tuple[str, bool]]) -> None:
            for text, thought in pieces:
                if thought and self.hide_thoughts:
                    shown.wait("thinking …")
                else:
                    shown.write(text, thought=thought)

        if self.answers and not self.interactive:
            sys.stdout.write("\n")  # a blank line between answers
        try:
            for event in events:
                if isinstance(event, TurnsEvicted):
                    shown.wait("")
                    self._absorbed(event)
                elif isinstance(event, Token):
                    begun = True
                    write(thoughts.push(event.text))
                elif isinstance(event, Prefill):
                    shown.wait(f"absorbing {event.done:,} of {event.total:,} tokens")
                elif isinstance(event, Answer):
                    self.answers += 1
                    self.tps = event.decode_tps
                    write(thoughts.flush())
                    cited = self._cited(event.text) if self.cite else Citations()
                    shown.end(citations.marks(cited))
                    if self.cite:
                        self._tell(cited)
                    if event.stopped_repeating:
                        terminal.warn(
                            f"the answer kept repeating itself and was ended after {event.completion_tokens:,} tokens;"
                            f" try /set temp 0.7, or /set max_tokens {self.max_tokens} to let it",
                            quiet=self.quiet,
                        )
                    elif event.finish_reason == "length":
                        terminal.warn(
                            f"the answer was cut at {event.completion_tokens:,} tokens; try /set max_tokens"
                            f" {2 * event.completion_tokens}",
                            quiet=self.quiet,
                        )
        except KeyboardInterrupt:
            events.close()
            if begun:
                shown.end()
            else:
                shown.wait("")
            kept = "what there is of the answer is kept" if begun else "before the answer began"
            terminal.note("stopped", f"{kept}; /retry asks again", quiet=self.quiet)
            if not self.interactive:
                raise
        except BaseException:
            with suppress(Exception):
                events.close()
            if begun:
                shown.end()
            raise

    # --- sources ---

    def sources(self, number: int | None = None) -> list[str]:
        """What a turn's answer quotes, and the pages that it attends to; of the last turn unless one is named.

        Raises:
            InputError: there is no such turn, or no document.
        """
        document, turns = self.setup.document, self.talk.turns
        if document is None:
            raise InputError("nothing has been read", "/add FILE")
        if not turns:
            raise InputError("there is no turn yet", "ask something")
        number = len(turns) if number is None else number
        if not 1 <= number <= len(turns):
            raise InputError(f"there is no turn {number:,}: they are 1 to {len(turns):,}", "/sources")
        turn = turns[number - 1]
        cited = replace(self._cited(turn.answer), likely_sources=self._likely(turn), grounded=None)
        return citations.lines(document, cited)

    def _cited(self, answer: str) -> Citations:
        document = self.setup.document
        if document is None:
            return Citations()
        if self._index is None or self._index.document is not document:
            self._index = QuoteIndex(document)
        quotes = tuple(self._index.cite(strip_reasoning(answer, thinking=self.setup.prompt.thinks)))
        return Citations(quotes, (), any(quote.status == "verified" for quote in quotes))

    def _likely(self, turn: transcript.Turn) -> tuple[LikelySource, ...]:
        """Pages that an answer attends to, its question put to the document as the first one."""
        from kvcli.retrieval.attribution import attribute

        setup = self.setup
        for _ in self.talk.open():
            pass
        context, document, prompt = self.talk.context, setup.document, setup.prompt
        if context is None or document is None:
            return ()
        text = strip_reasoning(turn.answer, thinking=prompt.thinks)
        return tuple(attribute(setup.model, prompt, context, document, turn.question, text, tokens=setup.tokens))

    def _tell(self, cited: Citations) -> None:
        """Below an answer what it quotes; where nothing of that is verified, pages that it attends to."""
        document = self.setup.document
        if document is None:
            return
        if not cited.grounded:
            waiting = _screen()
            waiting.wait("looking for sources …")
            try:
                cited = replace(cited, likely_sources=self._likely(self.talk.turns[-1]))
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
            finally:
                waiting.wait("")
        for line in citations.lines(document, cited):
            terminal.write(sys.stdout, line, "dim")

    def _absorbed(self, event: TurnsEvicted) -> None:
        """Said once: from then on it goes without saying."""
        if len(self.talk.absorbed) == 1:
            text = (
                f"{terminal.count(event.tokens)} tokens of {terminal.plural(event.turns, 'turn')} were evicted into the"
                " context like a part of the text; the chat goes on at the same memory"
            )
            terminal.note("absorbed", text, quiet=self.quiet)

    # --- what is known ---

    def status(self) -> str:
        """The bottom line: model and recipe, kept of read, turn, memory, speed."""
        setup, talk = self.setup, self.talk
        used, total = process_memory.used_and_total(setup.model.spec.device)
        context = talk.context
        parts = [f"{Path(setup.model.name).name} · {setup.recipe.policy.name}"]  # a directory's name, not its path
        if context is not None:
            parts.append(f"kept {context.kept:,} of {context.seen:,}")
        parts.append(f"turn {len(talk.turns) + 1}")
        parts.append(f"{used / 2**30:.1f}/{total / 2**30:.1f} GiB")
        if self.tps:
            parts.append(f"{self.tps:.1f} tok/s")
        return " · ".join(parts)

    def memory(self) -> list[tuple[str, str]]:
        """Bytes of what is held, by name."""
        talk, spec = self.talk, self.setup.model.spec
        used, total = process_memory.used_and_total(spec.device)
        work = None if talk.ground is None else talk.ground.work
        rows = [
            ("weights", format_bytes(spec.weight_bytes)),
            ("context", format_bytes(talk.context.nbytes if talk.context else 0)),
            ("host", format_bytes(talk.context.host_nbytes if talk.context else 0)),
            ("fill", format_bytes(work.nbytes if work else 0)),
            ("tail", format_bytes(talk.tail.nbytes if talk.tail else 0)),
        ]
        return [*rows, ("in use", f"{format_bytes(used)} of {format_bytes(total)} on {spec.device}")]

    def stats(self) -> list[tuple[str, str]]:
        """What a person may want to know of the conversation."""
        talk, setup = self.talk, self.setup
        made = sum(len(turn.ids) for turn in talk.turns)
        sampling = ", ".join(f"{k} {v:g}" for k, v in self.settings().items() if v is not None) or "greedy"
        rows = [("session", f"{self.path.stem} · {self.path}")]
        if setup.tokens:
            rows.append(("read", setup.report.reading()))
        room = f" of {talk.ground.room:,}" if talk.ground else ""
        return [
            *rows,
            ("turns", f"{len(talk.turns):,}, absorbed after {talk.absorbed[-1] if talk.absorbed else 0:,}"),
            ("tokens", f"{talk.used:,}{room} before turns are absorbed · {made:,} answered"),
            ("sampling", f"{sampling} · at most {self.max_tokens:,} tokens"),
            *([("speed", f"{self.tps:.1f} tok/s")] if self.tps else []),
        ]

    def problem(self, problem: KvcliError) -> None:
        """Say what went wrong with one line of the conversation."""
        self.failed += 1
        terminal.error(problem)


def _screen() -> TerminalAnswer | PlainAnswer:
    return TerminalAnswer() if terminal.is_terminal(sys.stdout) else PlainAnswer()


def _by_words(turn: transcript.Turn) -> transcript.Turn:
    """A turn of another model: its token ids mean nothing here."""
    return transcript.Turn(**{**asdict(turn), "ids": ()})


def export(path: Path, saved: Transcript) -> None:
    """The conversation as Markdown or JSON, by the name's ending. Raises ``UsageError`` or ``ResourceError``."""
    import json

    if path.suffix not in (".md", ".json"):
        raise UsageError(f"{path} is neither .md nor .json", "/export chat.md")
    if path.suffix == ".json":
        text = json.dumps(asdict(saved), ensure_ascii=False, indent=1) + "\n"
    else:
        files = ", ".join(Path(name).name for name in (*saved.files, *saved.added))
        parts = [f"# {files or 'A conversation'}"]
        for turn in saved.turns:
            quoted = "\n".join(f"> {line}".rstrip() for line in turn.question.splitlines())
            parts += [quoted, turn.answer.strip() or "(no answer)"]
        text = "\n\n".join(parts) + "\n"
    try:
        transcript.write(path, text)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}", "/export another/place.md") from None
