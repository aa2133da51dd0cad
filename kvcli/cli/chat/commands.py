"""The commands of a chat, such as ``/help``: one method each, whose docstring is its help."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.chat import transcript
from kvcli.cli import viewer
from kvcli.cli.chat.export import export
from kvcli.cli.chat.session import SAMPLING, short
from kvcli.cli.request import require_utf8
from kvcli.cli.signals import Interrupted
from kvcli.cli.views import citations, sparkline, terminal
from kvcli.documents.reader import is_url
from kvcli.errors import InputError, KvcliError, UsageError

if TYPE_CHECKING:
    from kvcli.cli.chat.session import ChatSession
    from kvcli.documents import Document, Span

FOUND = 20
MORE_QUOTES = 10
SESSIONS = 15
AROUND = 500
"""Characters before and after a quote that ``/open`` shows."""
ALIASES = {"?": "help", "h": "help", "quit": "exit", "q": "exit", "bye": "exit"}
KEYS = "Alt-Enter new line · Ctrl-X Ctrl-E editor · Ctrl-C stop · Ctrl-D leave"


class Commands:
    """Runs lines that begin with ``/``.

    Args:
        session: the conversation.
        confirm: asks a yes-or-no question; returns yes if standard input is not a terminal.
    """

    def __init__(self, session: ChatSession, confirm: Callable[[str], bool]) -> None:
        self.session, self.confirm = session, confirm
        self.leave = False

    @classmethod
    def names(cls) -> list[str]:
        """All commands, in the order of ``/help``."""
        return [name.removeprefix("do_") for name in vars(cls) if name.startswith("do_")]

    def run(self, line: str) -> None:
        """Run one command. Raises ``UsageError`` if it does not exist, with the nearest name."""
        name, _, rest = line.removeprefix("/").partition(" ")
        name = ALIASES.get(name, name)
        command = getattr(self, f"do_{name}", None)
        if command is None:
            near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.6)
            nearest = f"; did you mean /{near[0]}?" if near else ""
            raise UsageError(f"there is no command /{name}{nearest}", "/help")
        command(rest.strip())

    def do_help(self, _rest: str) -> None:
        """/help — show this help."""
        for name in self.names():
            usage, _, about = (getattr(self, f"do_{name}").__doc__ or "").strip().partition(" — ")
            _say(f"{usage:<26} {about}")
        if self.session.interactive:
            _say(KEYS)

    def do_files(self, _rest: str) -> None:
        """/files — list the documents."""
        document = self.session.setup.document
        if document is None:
            _say("no document; add one with /add FILE")
            return
        for name in document.files:
            pages = {span.page for span in document.spans if span.file == name and span.page is not None}
            size = sum(span.end - span.start for span in document.spans if span.file == name)
            _say(f"{name} · {size:,} characters" + (f" · {terminal.plural(len(pages), 'page')}" if pages else ""))

    def do_add(self, rest: str) -> None:
        """/add FILE… — add documents after the others."""
        setup = self.session.setup
        names = [setup.remembered(name) for name in _words(rest)]
        if not names:
            raise UsageError("no file was named", "/add FILE")
        before, added, tokens = setup.run, list(setup.added), setup.tokens
        setup.add(names)
        more = setup.tokens - tokens
        question = f"process {more:,} more tokens, {setup.tokens:,} in all ({setup.estimate(more)})?"
        stopped = "nothing was added; run /add again to resume"
        if self._read_again(question, lambda: setup.restore(before, added), stopped):
            terminal.note("read", setup.reading, quiet=self.session.quiet)

    def do_page(self, rest: str) -> None:
        """/page N — show a page, by its number or its printed one."""
        document = self._document()
        own = [span for span in document.spans if span.page is not None and str(span.page) == rest]
        printed = [span for span in document.spans if span.label is not None and span.label == rest]
        spans = own or printed
        if not spans and not rest.isdecimal():
            raise UsageError(f"'{rest}' is not the number of a page", "/page 12")
        if not spans:
            pages = [span.page for span in document.spans if span.page is not None]
            there = f"pages are {min(pages)} to {max(pages)}" if pages else "the document has no pages"
            raise InputError(f"there is no page {int(rest):,}: {there}", "/find TEXT")
        texts = [text for span in spans if (text := document.text[span.body : span.end].strip("\n")).strip()]
        for text in texts or [f"{_place(document, spans[0])} has no text"]:
            _say(terminal.strip_control(text))
        if own and (others := [span for span in printed if span not in own]):
            _say(f"the page printed {rest} is {_place(document, others[0])}: /page {others[0].page}")

    def do_find(self, rest: str) -> None:
        """/find TEXT — search the documents."""
        if not rest:
            raise UsageError("no text to search for", "/find TEXT")
        document = self._document()
        text, wanted = document.text.lower(), rest.lower()
        exact = len(text) == len(document.text)  # the case of some letters changes their length
        text, wanted = (text, wanted) if exact else (document.text, rest)
        at, places = text.find(wanted), list[int]()
        while at >= 0:
            places.append(at)
            at = text.find(wanted, at + len(wanted))
        for place in places[:FOUND]:
            span = document.at(place)
            where = citations.where(document, span, document.line(place))
            around = document.text[max(0, place - 30) : place + len(wanted) + 40]
            _say(f"{where}: …{terminal.oneline(around)}…")
        if not places:
            _say(f"'{rest}' was not found")
        elif len(places) > FOUND:
            _say(f"… and {len(places) - FOUND:,} more")

    def do_sources(self, rest: str) -> None:
        """/sources [TURN] — show the citations of the last answer, or of a turn."""
        if rest and not rest.isdecimal():
            raise UsageError(f"'{rest}' is not a turn number", "/sources 2")
        found = self.session.sources(int(rest) if rest else None)
        for line in found or ["no quote was found in the documents, and no page is a likely source"]:
            _say(line)

    def do_quotes(self, rest: str) -> None:
        """/quotes [N] — show 10 or N sentences that may answer."""
        if rest and not (rest.isdecimal() and int(rest)):
            raise UsageError(f"'{rest}' is not a number of sentences", "/quotes 10")
        session = self.session
        found = session.find_quotes(int(rest or MORE_QUOTES))
        turns, asked = session.conversation.turns, session.conversation.unanswered
        if not found.quotes:
            _say("no sentence of the documents shares a word with the question")
        session.show_quotes(found.quotes, asked or turns[-1].question)

    def do_open(self, rest: str) -> None:
        """/open N — show a quote in its text, and its page in a viewer."""
        document, shown = self._document(), self.session.shown
        if not rest.isdecimal() or not 1 <= int(rest) <= len(shown):
            numbers = f"quotes are 1 to {len(shown)}" if shown else "no quotes were shown"
            raise UsageError(f"'{rest}' is not the number of a quote: {numbers}", "/quotes")
        quote = shown[int(rest) - 1]
        start, end = max(0, quote.char_start - AROUND), quote.char_end + AROUND
        before, after = document.text[start : quote.char_start], document.text[quote.char_end : end]
        _say(citations.where(document, document.at(quote.char_start), quote.line))
        _say(("…" if start else "") + before + f"»{quote.text}«" + after + ("…" if end < len(document.text) else ""))
        name = quote.source if is_url(quote.source) else str(self.session.setup.folder / quote.source)
        if self.session.interactive and (program := viewer.show(name, quote.page, quote.text)):
            terminal.note("place", f"opened in {program}", quiet=self.session.quiet)

    def do_history(self, _rest: str) -> None:
        """/history — show the conversation so far."""
        self.session.recall(len(self.session.conversation.turns))

    def do_retry(self, _rest: str) -> None:
        """/retry — ask the last question again."""
        self.session.retry()

    def do_undo(self, _rest: str) -> None:
        """/undo — remove the last turn."""
        conversation = self.session.conversation
        if conversation.unanswered is not None:  # the last question has no answer
            question, conversation.unanswered = conversation.unanswered, None
            self.session.save()
        else:
            question = conversation.undo().question
        terminal.note("undone", short(question), quiet=self.session.quiet)

    def do_clear(self, _rest: str) -> None:
        """/clear — remove all turns; the documents stay."""
        self.session.conversation.clear()
        terminal.note("cleared", "all turns are removed; the documents stay", quiet=self.session.quiet)

    def do_system(self, rest: str) -> None:
        """/system [TEXT|-] — show or set the system prompt; - removes it."""
        setup = self.session.setup
        before = setup.options.system
        if not rest:
            _say(before or "no system prompt is set")
            return
        if setup.options.raw:
            raise UsageError("a system prompt has no effect with --raw", "start the chat without --raw")
        if setup.run.base is not None:
            raise UsageError(
                f"the system prompt of the saved prefill {setup.run.base} cannot change",
                "chat with the document instead",
            )
        setup.set_system(None if rest == "-" else require_utf8(rest, "the system prompt"))
        tokens = setup.tokens
        question = f"process all {tokens:,} tokens again ({setup.estimate(tokens)})?" if tokens else None
        if self._read_again(question, lambda: setup.set_system(before), "the system prompt is unchanged") and tokens:
            terminal.note("read", setup.reading, quiet=self.session.quiet)

    def do_set(self, rest: str) -> None:
        """/set [NAME VALUE] — show or set temp, seed, max_tokens, think, cite, …"""
        session = self.session
        name, _, value = rest.partition(" ")
        value = value.strip()
        if not name:
            shown = [
                *(row for row in session.stats() if row[0] == "sampling"),
                ("think", "hide" if session.hide_thoughts else "show"),
                ("cite", "on" if session.cite else "off"),
            ]
            for label, text in shown:
                _say(f"{label:<10}{text}")
            return
        if name == "think" and value in ("show", "hide"):
            session.hide_thoughts = value == "hide"
            session.save()
        elif name == "cite" and value in ("on", "off"):
            session.cite = value == "on"
        elif name == "sampling" and value == "model":
            session.given = None
        elif name == "max_tokens":
            session.max_tokens = int(_number(name, value, int))
        elif name in SAMPLING:
            from kvcli.engine.sampling import Sampling

            kind = int if name in ("top_k", "seed") else float
            given = {**session.settings(), SAMPLING[name]: _number(name, value, kind)}
            Sampling(**given)
            session.given = given
        else:
            raise UsageError(
                f"cannot set '{rest}': expected {', '.join(SAMPLING)}, max_tokens N, think show|hide,"
                " cite on|off or sampling model",
                "/set temp 0.7",
            )

    def do_save(self, rest: str) -> None:
        """/save [NAME] — continue under another name."""
        if rest:
            self.session.move(transcript.named(rest))
        else:
            self.session.save()
        terminal.note("saved", f"kvcli chat --session {self.session.path.stem}", quiet=self.session.quiet)

    def do_load(self, rest: str) -> None:
        """/load [NAME] — list the sessions, or switch to another."""
        session = self.session
        if not rest:
            for name in transcript.names()[:SESSIONS]:
                _say(name)
            return
        path = transcript.named(rest)
        if path == session.path:
            raise UsageError(f"the session {rest} is already open", "/stats")
        found = transcript.load(path)
        session.load(path, found)
        terminal.note("session", f"{path.stem} · {terminal.plural(len(found.turns), 'turn')}", quiet=session.quiet)

    def do_export(self, rest: str) -> None:
        """/export FILE.md — write the conversation as .md, .html or .json."""
        if not rest:
            raise UsageError("no file was named", "/export chat.md")
        path = Path(rest).expanduser()
        self.session.save()
        export(path, self.session.saved, self.session.cited_turn)
        terminal.note("exported", str(path), quiet=self.session.quiet)

    def do_stats(self, _rest: str) -> None:
        """/stats — show the turns, tokens, sampling and speed."""
        for label, text in self.session.stats():
            _say(f"{label:<10}{text}")

    def do_memory(self, _rest: str) -> None:
        """/memory — show memory use."""
        for label, text in self.session.memory():
            _say(f"{label:<10}{text}")

    def do_kv(self, _rest: str) -> None:
        """/kv — show which parts of the documents are kept."""
        from kvcli.cache.retention import equal_bins, mean_retention

        setup, context = self.session.setup, self.session.conversation.context
        document, tokens = setup.document, setup.tokens
        if document is None or context is None:
            raise InputError("there is no document", "/add FILE")
        edges = equal_bins(tokens, sparkline.WIDTH)
        found = mean_retention(context, edges, setup.model.spec.sliding)
        _say(sparkline.bars(found))
        _say(sparkline.ends(document, len(found)))
        kept = sum(share * (b - a) for share, a, b in zip(found, edges, edges[1:], strict=False))
        _say(f"{kept:,.0f} of {tokens:,} tokens kept per KV head; the tallest bar is {max(found):.0%}")

    def do_exit(self, _rest: str) -> None:
        """/exit — leave; kvcli chat -c continues."""
        self.leave = True

    def _read_again(self, question: str | None, undo: Callable[[], None], stopped: str) -> bool:
        """Read the documents after a change, if the user agrees to ``question``; else undo it. Whether it was kept."""
        conversation = self.session.conversation
        try:
            if question is not None and not self.confirm(question):
                undo()
                return False
            conversation.forget_context()
            for _ in conversation.open():
                pass
        except (KvcliError, KeyboardInterrupt) as problem:
            undo()
            conversation.forget_context()
            if isinstance(problem, KvcliError) and not isinstance(problem, Interrupted):
                raise
            terminal.note("stopped", stopped)
            return False
        self.session.save()
        return True

    def _document(self) -> Document:
        document = self.session.setup.document
        if document is None:
            raise InputError("there is no document", "/add FILE")
        return document


def _place(document: Document, span: Span) -> str:
    return citations.where(document, span, span.line)


def _say(text: str) -> None:
    """Print text to stdout, a description below a description if a line has two columns."""
    for line in terminal.strip_control(text).rstrip().split("\n"):
        first = re.match(r"\S.*? {2,}(?=\S)", line)
        terminal.paragraph(sys.stdout, line, indent=len(first[0]) if first else 0)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}".lower(), "/add 'a name with spaces.txt'") from None


def _number(name: str, value: str, kind: type[int] | type[float]) -> float:
    try:
        number = kind(value)
    except ValueError:
        raise UsageError(f"{name}: '{value}' is not a number", "/set") from None
    if not number < float("inf") or (name == "max_tokens" and number < 1):
        raise UsageError(f"{name} cannot be {value}", "/set")
    return number
