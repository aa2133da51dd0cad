"""A chat that is open: it takes one line after the other."""

from __future__ import annotations

import re
import signal
import traceback
from typing import Any

from kvcli.cli.chat.commands import Commands
from kvcli.cli.chat.input import confirm
from kvcli.cli.chat.session import ChatSession
from kvcli.cli.exit_codes import PARTLY_FAILED, to_kvcli_error
from kvcli.cli.request import require_utf8
from kvcli.cli.signals import Interrupted
from kvcli.cli.views import terminal
from kvcli.errors import InputError

LEAVE = ("exit", "quit", "bye", ":q", ":q!")
"""Words that leave the chat when they are typed alone."""

COMMAND = re.compile(r"/([a-z]*|\?)(\s|$)")
"""A command. A path or a pasted comment is a question."""


class Chat:
    """Runs the lines of a chat.

    Args:
        session: opened.
        debug: print tracebacks.

    Attributes:
        leave: the user wants no more.
    """

    def __init__(self, session: ChatSession, *, debug: bool) -> None:
        self.session, self.debug, self.leave = session, debug, False
        self.commands = Commands(session, confirm if session.interactive else lambda _: True)
        self._count = 0

    def state(self) -> dict[str, Any]:
        """What the prompt shows."""
        return {"names": Commands.names(), "status": terminal.oneline(self.session.status())}

    def take(self, line: str, early: int = 0) -> None:
        """Ask or run a line; an error is printed, and the next line may follow. ``early``: a signal came before."""
        session = self.session
        self._count += 1
        try:
            if early:
                signal.raise_signal(early)
            text = self._decoded(line).strip()
            if session.interactive and text.lower() in LEAVE:
                self.leave = True
            elif COMMAND.match(text):
                self.commands.run(require_utf8(text, "the command"))
            elif text:
                session.ask(require_utf8(text, "the question"))
        except Interrupted:
            raise
        except KeyboardInterrupt as stop:
            if not session.interactive:
                raise Interrupted(
                    "interrupted; the conversation is saved", f"kvcli chat --session {session.path.stem}", cause=stop
                ) from None
        except BrokenPipeError:
            raise
        except Exception as problem:
            if self.debug:
                traceback.print_exception(problem)
            session.problem(to_kvcli_error(problem))
        self.leave = self.leave or self.commands.leave

    def _decoded(self, line: str) -> str:
        if self.session.interactive:
            return line
        try:
            line.encode()
        except UnicodeEncodeError:
            raise InputError(f"line {self._count} of standard input is not UTF-8", "iconv -t utf-8") from None
        return line.removeprefix("\ufeff") if self._count == 1 else line

    def end(self) -> int:
        """Close the conversation; returns the exit code."""
        session = self.session
        session.close()
        if session.interactive and session.conversation.turns:
            again = f"kvcli chat --session {session.path.stem}, or kvcli chat -c"
            terminal.note("saved", again, quiet=session.quiet)
        return PARTLY_FAILED if session.failed and not session.interactive else 0
