"""A client's command in the engine: what the client sends while it waits or runs, and the files it has lent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kvcli.cli.resident import protocol

if TYPE_CHECKING:
    from kvcli.cli.chat.loop import Chat

REPLY_S = 5.0
"""Seconds in which a client must say that it still waits."""


def ignore(_number: int, _frame: object) -> None:
    """A handler, not SIG_IGN, which children would inherit."""


class ClientCommand:
    """One command of one client.

    Attributes:
        chat: what the command opened, if it is a chat.
        line: of the chat that is to run; ``None`` for its end.
    """

    def __init__(self, connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        self.connection, self.request, self.descriptors = connection, request, descriptors
        self.chat: Chat | None = None
        self.line: str | None = None
        self.gone = self.ended = False
        self.began = time.monotonic()
        self.answered = threading.Event()
        self.goes = False
        self.signals: list[int] = []
        self.used: set[str] = set()
        self._lock = threading.Lock()
        self._runs = False
        self.early = 0

    def tell(self, **message: Any) -> None:
        """Tell the client, if it is still there."""
        with contextlib.suppress(OSError):
            protocol.send(self.connection, **message)

    def used_stream(self, what: str) -> None:
        """Tell the client once that a stream is used: from then on the command cannot be run a second time."""
        if what not in self.used:
            self.used.add(what)
            self.tell(**{what: True})

    def follow(self, lines: protocol.Lines, submit: Callable[[ClientCommand], None]) -> None:
        """Read what the client says until it leaves; runs in a thread. ``submit`` puts the command into the queue."""
        while (message := lines.next()) is not None:
            if message.get("go"):
                self.goes = True
                self.answered.set()
            elif message.get("signal") in (signal.SIGINT, signal.SIGTERM):
                self._raise(message["signal"])
            elif self.chat is not None and "line" in message:
                self.line, self.early = message["line"], 0
                submit(self)
        self.answered.set()
        if not self.goes:  # nobody may wait for the end of a file that is kept open here
            self.give_back()
        with self._lock:
            self.gone = True
            if self.chat is not None and not self._runs:
                submit(self)
        self._raise(signal.SIGTERM)

    def keep(self, chat: Chat) -> None:
        """The command has opened a chat."""
        with self._lock:
            self.chat = chat

    def wanted(self) -> bool:
        """Whether the client still waits when its turn comes."""
        self.tell(turn=True)
        return self.answered.wait(REPLY_S) and self.goes

    def _raise(self, number: int) -> None:
        with self._lock:
            if self._runs:
                self.signals.append(number)
                signal.pthread_kill(threading.main_thread().ident or 0, number)
            else:
                self.early = number  # of a line that waits for its turn

    @contextlib.contextmanager
    def signalled(self) -> Iterator[None]:
        """Signals of the client are raised in the main thread."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self._lock:
            self._runs = True
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, ignore)
            with self._lock:
                self._runs = False

    def give_back(self) -> None:
        """Close the client's files."""
        with self._lock:
            descriptors, self.descriptors = self.descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)

    def close(self) -> None:
        """Close the client's files and the connection."""
        self.give_back()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
