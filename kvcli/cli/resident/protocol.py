"""What client and engine say: one request with file descriptors, then lines of JSON both ways.

    client → engine    8 bytes: the length of the request; with it, for "run": stdin, stdout, stderr, working directory
                       {"do": "run" | "status" | "stop" | "release", …}
    engine → client    {"pid": 4711}           at once
                       {"turn": true}          the engine is free for this request
    client → engine    {"go": true}            the client still waits
    engine → client    {"read": true}          standard input is read now
                       {"wrote": true}         standard output is written to now
                       {"exit": 0}             the end
                       {"alone": true}         instead: config.toml says that the client runs the command
                       {"names": […], "status": "…"}    instead: a chat is open; also after each of its lines
    client → engine    {"line": "…"}           of a chat; null at its end
    client → engine    {"signal": 2}           at any time between

A connection that closes ends the request: the engine treats it as SIGTERM, and the client runs the command itself.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

DESCRIPTORS = 4
LONGEST = 64 << 20
"""Bytes of a request; a command line and an environment have a few MiB at most."""


def send_request(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    """Send a request and open files with it. Raises ``OSError``."""
    body = json.dumps(request).encode()
    head = len(body).to_bytes(8, "big")
    if descriptors:
        socket.send_fds(connection, [head], descriptors)
    else:
        connection.sendall(head)
    connection.sendall(body)


def receive_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and its open files. Raises ``OSError`` or ``ValueError``; then no file is open."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, DESCRIPTORS)
    try:
        while len(head) < 8:
            head += _some(connection, 8 - len(head))
        length = int.from_bytes(head, "big")
        if length > LONGEST:
            raise ValueError(f"a request of {length:,} bytes")
        body = bytearray()
        while len(body) < length:
            body += _some(connection, length - len(body))
        request: dict[str, Any] = json.loads(bytes(body))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return request, descriptors


def _some(connection: socket.socket, most: int) -> bytes:
    data = connection.recv(min(most, 1 << 20))
    if not data:
        raise ConnectionResetError("the connection was closed")
    return data


def send(connection: socket.socket, **message: Any) -> None:
    """Send one line. Raises ``OSError``."""
    connection.sendall(json.dumps(message).encode() + b"\n")


class Lines:
    """The messages of a connection, one by one.

    Attributes:
        pid: of the process at the other end, once it has greeted.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._rest = connection, b""
        self.pid = 0

    def next(self) -> dict[str, Any] | None:
        """The next message; ``None`` if the connection is closed. Raises ``TimeoutError``."""
        while b"\n" not in self._rest:
            try:
                data = self.connection.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                return None
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
