"""The engine: a process that runs one command after the other for clients, as each client would have run it.

A chat is a command that comes back: each line that its client sends waits for its turn like a command.

A command runs in the main thread, by the function that ``kvcli`` itself calls. It has the client's open files as 0, 1
and 2, and the client's working directory, umask and environment. Signals that reach the client are raised here. A
thread for each connection reads what the client says meanwhile. Nothing is forked: OpenMP and CUDA do not survive that.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvcli.cli.resident import kept, protocol
from kvcli.cli.resident.client_command import REPLY_S, ClientCommand, ignore
from kvcli.cli.resident.sockets import open_directory
from kvcli.cli.resident.streams import Streams
from kvcli.cli.views.activity import row
from kvcli.models import partial_imports
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.cli.chat.loop import Chat

CLEAN = frozenset((0, 2, 3, 4, 6, 7, 8, 10, 141))
"""Exit codes after which the model is kept, unless ``kept.doubtful``. After another one the next command loads it."""

IDLE = 300.0
"""Seconds without a command after which an engine leaves, until a client names others."""

_WAITS = -1
"""In place of an exit code: a chat that waits for its next line."""


class Leave(Exception):
    """SIGTERM while no command runs."""


class Engine:
    """The process: its socket, its queue of commands, and what ``kvcli ps`` shows of it.

    Args:
        listening: the socket that the first client made.
        key, inode: name and inode of the socket.
    """

    def __init__(self, listening: socket.socket, key: str, inode: int) -> None:
        self.listening, self.key, self.inode = listening, key, inode
        self.commands: queue.Queue[ClientCommand | None] = queue.Queue()
        self.running: ClientCommand | None = None
        self.chats: set[ClientCommand] = set()
        self.leaving = False
        self.idle = IDLE
        self.served = 0
        self.started = self.last = time.monotonic()
        self.out = Streams()
        self.directory = open_directory()

    def run(self) -> None:
        """Serve until nobody has asked for a while, or until told to leave."""
        kept.active = True
        threading.Thread(target=self._accept, daemon=True).start()
        _leave_on_sigterm()
        try:
            while not (self.leaving and self.commands.empty() and not self.chats):
                with contextlib.suppress(queue.Empty):
                    left = max(0.0, self.last + self.idle - time.monotonic())
                    command = self.commands.get(timeout=None if self.chats else left)
                    if command is not None:
                        self._serve(command)
                    continue
                if self._retire():
                    self.leaving = True
        except Leave:
            self._retire()
        while not self.commands.empty():  # came while the socket was removed
            if (command := self.commands.get()) is not None:
                command.close()

    # --- connections ---

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        """One connection, in a thread of its own."""
        try:
            protocol.send(connection, pid=os.getpid(), version=__version__)
            connection.settimeout(REPLY_S)
            request, descriptors = protocol.receive_request(connection)
        except (OSError, ValueError):
            connection.close()
            return
        connection.settimeout(None)
        command = ClientCommand(connection, request, descriptors)
        if request.get("do") == "run" and len(descriptors) == protocol.DESCRIPTORS:
            self.commands.put(command)
            command.follow(protocol.Lines(connection), self.commands.put)
            return
        if request.get("do") in ("status", "stop"):
            command.tell(**self.status())
        command.close()
        if request.get("do") in ("stop", "release"):
            self._stop(only_idle=request["do"] == "release")

    def status(self) -> dict[str, Any]:
        """What ``kvcli ps`` shows."""
        from kvcli.utils.process_memory import resident

        command, now = self.running, time.monotonic()
        used = command is not None or bool(self.chats)
        return {
            "pid": os.getpid(),
            "version": __version__,
            **{name: kept.facts.get(name) for name in ("model", "device", "dtype", "weights")},
            "memory_bytes": resident(),
            "age_s": round(now - self.started, 1),
            "commands": self.served,
            "state": "busy" if command is not None else "chat" if self.chats else "idle",
            "busy_s": None if command is None else round(now - command.began, 1),
            "leaves_in_s": None if used else round(max(0.0, self.last + self.idle - now), 1),
        }

    def _stop(self, *, only_idle: bool) -> None:
        """Leave, after the commands that wait.

        With ``only_idle``: only if there are none, and if the memory that the model takes may be needed.
        """
        if only_idle and (self.running is not None or self.chats or not self.commands.empty() or not _holds_much()):
            return
        self.leaving = True
        self._retire()
        self.commands.put(None)

    def _retire(self) -> bool:
        """Remove the socket, so that the next client starts another engine; false if one is being made."""
        try:
            if self.directory is not None:
                with self.directory.lock(wait=False):
                    if self.directory.inode(self.key) == self.inode:
                        self.directory.remove(self.key)
        except BlockingIOError:
            return False
        return True

    # --- commands ---

    def _serve(self, command: ClientCommand) -> None:
        """Run one command or one line of a chat, if its client still waits."""
        code: int | None = None
        if command.ended:
            return
        try:
            if command.chat is None and not command.wanted():
                return
            self.running, command.began = command, time.monotonic()
            if command.chat is not None:
                command.tell(turn=True)
            with self._as_client(command):
                code = _run(command)
        finally:
            self.running, self.last = None, time.monotonic()
            self._ended(command, code)
        if code == 143 and signal.SIGTERM not in command.signals:  # someone ends this process
            raise Leave
        if code not in (None, _WAITS) and (kept.doubtful or code not in CLEAN):
            kept.forget()
        _tidy()
        _leave_on_sigterm()

    def _ended(self, command: ClientCommand, code: int | None) -> None:
        """Tell the client how its command or line has ended."""
        if code == _WAITS and command.chat is not None and not command.gone:
            self.chats.add(command)
            command.tell(**command.chat.state())
            return
        command.ended = True
        self.chats.discard(command)
        command.give_back()
        if command.chat is not None:
            command.chat.session.close()
        if code is not None:  # else the client runs the command itself
            self.served += 1
            command.tell(exit=code)
        command.close()

    @contextlib.contextmanager
    def _as_client(self, command: ClientCommand) -> Iterator[None]:
        """The client's files, directory, umask and environment; at the end nothing of them is kept open."""
        request, environment, mask = command.request, dict(os.environ), os.umask(0)
        self.idle = float(request["keep_alive"])
        *files, here = command.descriptors
        try:
            for number, descriptor in enumerate(files):
                os.dup2(descriptor, number)
            os.fchdir(here)
            os.umask(request["umask"])
            _replace(request["environment"])
            tempfile.tempdir = None
            _reset_peak()
            self.out.begin(command.used_stream, request["streams"])
            if request.pop("row", False):
                row.take_over()
            yield
        finally:
            self.out.end()
            _replace(environment)
            os.umask(mask)
            os.chdir("/")


def _run(command: ClientCommand) -> int | None:
    """Run the command; every ending becomes an exit code, or ``None`` if the client is to run it."""
    from kvcli.cli.app import run

    sys.argv = ["kvcli", *command.request["args"]]
    try:
        with command.signalled():
            if command.chat is not None:
                return _run_line(command, command.chat)
            code = run(command.request["args"])
            opened, kept.chat = kept.chat, None
            if opened is None:
                return code
            command.keep(opened)
            return code or _WAITS
    except kept.RunAlone:
        command.tell(alone=True)
        return None
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as problem:  # a signal after the command's own end
        from kvcli.cli import exit_codes

        return exit_codes.to_kvcli_error(problem).exit


def _run_line(command: ClientCommand, chat: Chat) -> int:
    """Run the line of a chat, or its end."""
    from kvcli.cli import exit_codes
    from kvcli.cli.signals import install_sigterm

    install_sigterm()
    try:
        if command.gone:
            return 0
        if command.line is not None:
            chat.take(command.line, command.early)
            sys.stdout.flush()
        return chat.end() if chat.leave or command.line is None else _WAITS
    except BaseException as problem:
        return exit_codes.finish(problem, as_json=False, debug=chat.debug)
    finally:
        row.clear()


def _replace(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _reset_peak() -> None:
    """Peak memory counts from here: ``--stats`` reports that of one command."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats()


def _tidy() -> None:
    """Free what the command left, for other processes too. What stays is not looked through again the next time."""
    from kvcli.utils.process_memory import trim

    gc.collect()
    gc.freeze()
    trim()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()


def _holds_much() -> bool:
    """Whether another process may lack the memory that this one keeps."""
    from kvcli.utils.process_memory import host_available, resident

    return str(kept.facts.get("device", "cpu")) != "cpu" or host_available() < 2 * resident()


def _leave(_number: int, _frame: object) -> None:
    raise Leave


def _leave_on_sigterm() -> None:
    signal.signal(signal.SIGINT, ignore)
    signal.signal(signal.SIGTERM, _leave)


def main() -> int:
    """``sys.argv``: the number of the listening socket, its name and its inode."""
    number, key, inode = sys.argv[1:]
    signal.signal(signal.SIGHUP, ignore)
    partial_imports.install()
    Engine(socket.socket(fileno=int(number)), key, int(inode)).run()
    os._exit(0)  # torch and its threads have nothing to save
