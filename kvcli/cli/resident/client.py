"""``kvcli ask``, ``prefill`` and ``chat`` as clients of an engine. Imports no torch, no typer: it is there at once.

The client gives its streams, working directory, umask and environment to the engine, passes signals on, and ends with
the exit code that comes back. If there is no engine and none is wanted, the command runs in this process. The same
happens if an engine is busy, does not answer, or ends before the command has read or written anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from kvcli.cli.resident import protocol
from kvcli.cli.resident.sockets import SocketDirectory, UnsafeDirectory, open_directory
from kvcli.cli.views.activity import row

COMMANDS = ("ask", "prefill", "chat")

KEEP_ALIVE = 300.0
"""Seconds that an engine waits for the next command."""

GREETING, STARTING, BUSY = 2.0, 20.0, 1.5
"""Seconds to wait for the greeting of an engine, of one that starts, and for the end of another client's command."""

SHOWN = 0.5
"""Seconds that a line of a chat waits for another client's command until that is shown."""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}

_OWN = re.compile(r"(-\w|--[\w-]+=)?/(dev|proc)/")
"""Names of things of this very process: ``/dev/fd/63``, ``/dev/tty``, ``/proc/self``. An engine has others."""

_NOT_HERE = ("-h", "--help", "--no-server")


class BadKeepAlive(ValueError):
    """The value of ``KVCLI_KEEP_ALIVE``."""


class EngineDied(Exception):
    """The engine ended when the command had already read or written: it cannot be run again."""

    def __init__(self, message: str, hint: str = "the same command with --no-server") -> None:
        super().__init__(message)
        self.hint = hint


def run(args: Sequence[str]) -> int | None:
    """Let an engine run a command.

    Args:
        args: of the program, the name of the command first.

    Returns:
        the exit code; ``None`` if this process must run the command.

    Raises:
        BadKeepAlive: the variable is not a time.
        EngineDied: the engine ended in the middle.
    """
    if not fits(args):
        return None
    seconds = keep_alive()
    if not seconds:
        return None
    try:
        directory = open_directory()
    except UnsafeDirectory as problem:
        _say(args, f"warning: no engine is used: {problem}")
        return None
    if directory is None:
        return None
    try:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        directory.close()
        return None
    try:
        return _run(directory, args, seconds, here)
    finally:
        os.close(here)
        directory.close()


def fits(args: Sequence[str]) -> bool:
    """Whether a command can run in an engine as it runs here."""
    if not args or args[0] not in COMMANDS or not hasattr(socket, "send_fds") or os.getuid() != os.geteuid():
        return False
    own = list(args)[: list(args).index("--")] if "--" in args else list(args)
    if any(word in _NOT_HERE for word in own) or any(_OWN.match(word) for word in args):
        return False
    if os.environ.get("KVCLI_NO_SERVER", "").lower() in ("1", "true", "yes", "on", "t", "y"):
        return False
    flags = sys.flags.optimize or sys.flags.dev_mode or sys.flags.inspect or sys._xoptions or sys.warnoptions
    if flags or None in (sys.stdin, sys.stdout, sys.stderr):
        return False
    try:  # in the background of a terminal, reading from it must stop this process
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # not the terminal of this session
        return True


def keep_alive() -> float:
    """Seconds that an engine stays, from ``KVCLI_KEEP_ALIVE``; 0 for no engine, the default under ``CI``."""
    text = os.environ.get("KVCLI_KEEP_ALIVE", "").strip()
    if not text:
        return 0.0 if os.environ.get("CI", "").lower() not in ("", "0", "false") else KEEP_ALIVE
    match = re.fullmatch(r"(\d+)([smh]?)", text)
    if match is None:
        raise BadKeepAlive(f"KVCLI_KEEP_ALIVE={text}: expected a time such as 90s, 5m or 1h; 0 for no engine")
    return float(int(match[1]) * _UNITS[match[2]])


def _run(directory: SocketDirectory, args: Sequence[str], seconds: float, here: int) -> int | None:
    from kvcli.cli.resident.identity import key

    name = key()
    for _ in range(2):  # an engine may leave at the moment of the first try
        connection, lines = directory.connect(name, GREETING), None
        if connection is not None:
            lines = _greeted(connection, GREETING)
        elif not _wanted(args):
            return None
        else:
            connection = _start(directory, name)
            if connection is None:
                return None
            lines = _greeted(connection, STARTING)
        if lines is None:
            connection.close()
            continue
        with connection:
            done = _Conversation(connection, lines, args, seconds, here).run()
        if done is not _AGAIN:
            return done
    return None


_AGAIN = -1
"""In place of an exit code: the engine left before the command's turn."""


def _wanted(args: Sequence[str]) -> bool:
    """Whether a new engine is worth its while: the command needs a model."""
    return "--quotes-only" not in args and ("-t", "quote") not in pairwise(args)


def _greeted(connection: socket.socket, seconds: float) -> protocol.Lines | None:
    connection.settimeout(seconds)
    lines = protocol.Lines(connection)
    try:
        greeting = lines.next()
    except TimeoutError:
        return None
    if greeting is None:
        return None
    lines.pid = int(greeting["pid"])
    return lines


def _start(directory: SocketDirectory, name: str) -> socket.socket | None:
    """Start an engine, detached; returns a connection to it. It accepts before it imports torch."""
    from kvcli.utils import child_process

    try:
        with directory.lock():
            if (other := directory.connect(name, GREETING)) is not None:  # another client was faster
                return other
            _sweep(directory)
            with directory.listen(name) as listening:
                number = listening.fileno()
                args = (str(number), name, str(directory.inode(name)))
                log = directory.log(name)
                try:
                    child_process.detach(child_process.own_module("kvcli.cli.resident.engine", *args), log, number)
                finally:
                    os.close(log)
            return directory.connect(name, GREETING)
    except OSError:
        return None


def _sweep(directory: SocketDirectory) -> None:
    """Delete what engines left that were killed."""
    for name in directory.sockets():
        connection = directory.connect(name, GREETING)
        if connection is None:
            directory.remove(name)
        else:
            connection.close()


class _Conversation:
    """One command in an engine."""

    def __init__(
        self, connection: socket.socket, lines: protocol.Lines, args: Sequence[str], seconds: float, here: int
    ) -> None:
        self.connection, self.lines, self.args, self.seconds, self.here = connection, lines, args, seconds, here

    def run(self) -> int | None:
        """The exit code; ``None`` if this process must run the command; ``_AGAIN`` if another engine may."""
        mask = os.umask(0)
        os.umask(mask)
        request = {
            "do": "run",
            "args": list(self.args),
            "environment": dict(os.environ),
            "keep_alive": self.seconds,
            "umask": mask,
            "streams": _streams(),
            "row": row.hand_over(),
        }
        self.connection.settimeout(BUSY)
        try:
            protocol.send_request(self.connection, request, [0, 1, 2, self.here])
            if self.lines.next() is None:
                return _AGAIN
        except TimeoutError:  # busy
            return None
        except OSError:
            return _AGAIN
        self.connection.settimeout(None)
        with self._signals():
            try:
                protocol.send(self.connection, go=True)
            except OSError:
                return _AGAIN
            state = self._follow()
        return self._chat(state) if isinstance(state, dict) else state

    def _chat(self, state: dict[str, Any]) -> int:
        """Read the lines of a chat here, with the keys of this terminal; the engine runs each."""
        from kvcli.cli.chat.lines import lines
        from kvcli.cli.signals import install_sigterm

        install_sigterm()
        for line in lines(state["names"], lambda: str(state["status"])):
            answer = self._line(line)
            if "exit" in answer:
                return int(answer["exit"])
            state.update(answer)
        return int(self._line(None)["exit"])

    def _line(self, line: str | None) -> dict[str, Any]:
        """Let the engine run a line of a chat, or its end; returns what then holds."""
        with self._signals(), contextlib.suppress(OSError):
            protocol.send(self.connection, line=line)
            self.connection.settimeout(SHOWN)
            try:
                message = self.lines.next()
            except TimeoutError:
                row.start("another command is running")
                self.connection.settimeout(None)
                message = self.lines.next()
                row.clear()
            self.connection.settimeout(None)
            while message is not None and not {"exit", "status"} & {*message}:
                message = self.lines.next()
            if message is not None:
                return message
        raise EngineDied("the engine ended; the conversation is saved", "kvcli chat -c")

    def _follow(self) -> int | dict[str, Any] | None:
        used = False
        while (message := self.lines.next()) is not None:
            if "exit" in message:
                return int(message["exit"])
            if "status" in message:
                return message
            if message.get("alone"):
                return None
            used = used or bool(message.get("read") or message.get("wrote"))
        if used:
            raise EngineDied("the engine ended in the middle of the command")
        _say(self.args, "the engine ended; starting again without it")
        return None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass Ctrl-C, SIGTERM and Ctrl-Z on; a third Ctrl-C no longer waits for the engine."""
        self.interrupts = 0
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)}
        for number, known in before.items():
            if known is not signal.SIG_IGN:
                signal.signal(number, self._stop if number == signal.SIGTSTP else self._pass_on)
        try:
            yield
        finally:
            for number, known in before.items():
                signal.signal(number, known)

    def _pass_on(self, number: int, _frame: object) -> None:
        self.interrupts += 1
        if self.interrupts > 2:
            os._exit(128 + number)
        with contextlib.suppress(OSError):
            protocol.send(self.connection, signal=number)

    def _stop(self, number: int, _frame: object) -> None:
        """Ctrl-Z: the engine stops and goes on with this process."""
        with contextlib.suppress(OSError):
            os.kill(self.lines.pid, signal.SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stop)
        with contextlib.suppress(OSError):
            os.kill(self.lines.pid, signal.SIGCONT)


def _streams() -> list[dict[str, Any]]:
    """How Python opened the three streams here."""
    names = ("encoding", "errors", "line_buffering", "write_through")
    found = [{name: getattr(stream, name) for name in names} for stream in (sys.stdin, sys.stdout, sys.stderr)]
    return [{"encoding": found[0]["encoding"], "errors": found[0]["errors"]}, *found[1:]]


def _say(args: Sequence[str], text: str) -> None:
    if not {"-q", "--quiet"} & {*args}:
        row.clear()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"kvcli: {text}\n")


def engines(ask: str) -> list[dict[str, Any]]:
    """Tell every engine of this user something; returns their answers.

    Args:
        ask: ``status``; ``stop``, which ends an engine after its commands; ``release``, which ends one that has none
            and keeps memory that another process may need.

    Raises:
        UnsafeDirectory: the directory with the sockets is not this user's alone.
    """
    directory = open_directory(make=False) if hasattr(socket, "send_fds") else None
    if directory is None:
        return []
    found: list[dict[str, Any]] = []
    with contextlib.closing(directory):
        for name in directory.sockets():
            if (connection := directory.connect(name, GREETING)) is None:
                continue
            with connection, contextlib.suppress(OSError):
                if (lines := _greeted(connection, GREETING)) is not None:
                    protocol.send_request(connection, {"do": ask}, [])
                    if (answer := lines.next()) is not None:
                        found.append(answer)
    return found
