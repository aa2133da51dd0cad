"""The HTTP servers of this user: ``kvcli serve --background``, ``--status`` and ``--stop``.

Each server holds a lock on a file that describes it. The kernel frees the lock when the process ends, however it ends.
So a file without a lock belongs to a server that has ended. Process numbers may be reused.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from kvcli.cli.resident.sockets import SocketDirectory, UnsafeDirectory, open_directory
from kvcli.errors import ResourceError

_PREFIX = "serve-"


@dataclass(frozen=True)
class Server:
    """What ``--status`` shows of a running server."""

    pid: int
    port: int
    address: str
    model: str
    device: str
    documents: int
    log: str | None
    started: float  # seconds since the epoch


def running(port: int | None = None) -> list[Server]:
    """The servers that run, by port; only the one on ``port`` if that is given."""
    directory = open_directory(make=False)
    if directory is None:
        return []
    try:
        with directory.lock():
            found = [server for name in _names(directory) if (server := _live(directory, name)) is not None]
    finally:
        directory.close()
    return [server for server in found if port in (None, server.port)]


@contextlib.contextmanager
def registered(server: Server) -> Iterator[None]:
    """List the server as running inside the block, if there is a safe directory for it."""
    try:
        directory = open_directory()
    except UnsafeDirectory:
        directory = None
    if directory is None:
        yield
        return
    import fcntl

    name = f"{_PREFIX}{server.port}"
    with directory.lock():  # nobody deletes the file between its creation and its lock
        held = os.open(name, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600, dir_fd=directory.descriptor)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        os.ftruncate(held, 0)
        os.pwrite(held, json.dumps(asdict(server)).encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory.descriptor)
        os.close(held)
        directory.close()


def stop(server: Server, seconds: float = 90) -> bool:
    """End a server as SIGTERM does, and wait; whether it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(other.pid == server.pid for other in running(server.port)):
            return True
        time.sleep(0.05)
    return False


def _names(directory: SocketDirectory) -> list[str]:
    names = [n for n in os.listdir(directory.descriptor) if n.startswith(_PREFIX) and not n.endswith(".log")]
    return sorted(names, key=lambda name: (len(name), name))


def _live(directory: SocketDirectory, name: str) -> Server | None:
    """The server that holds the file's lock; without one the file is deleted. Call it under the place's lock."""
    import fcntl

    try:
        held = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory.descriptor)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, TypeError):
            return Server(**json.loads(os.pread(held, 1 << 16, 0)))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory.descriptor)
    finally:
        os.close(held)
    return None


def detach(port: int) -> tuple[Callable[[], None], str] | None:
    """Fork a server that outlives the terminal.

    Returns:
        In the server: a function to call when it is ready, and its log's path. Until then it writes to the terminal
        and Ctrl-C reaches it. In the command that was typed: ``None``, after the server is ready.

    Raises:
        ResourceError: there is no safe directory for the log.
        SystemExit: in the command that was typed, if the server ended before it was ready; with its exit code.
    """
    if not hasattr(os, "fork"):
        raise ResourceError("--background needs fork, which does not exist here", "kvcli serve, in another terminal")
    directory = open_directory()
    if directory is None:
        raise ResourceError("there is no directory for the server's log", "export XDG_RUNTIME_DIR=…")
    path = os.path.join(directory.path, f"{_PREFIX}{port}.log")
    log = directory.log(f"{_PREFIX}{port}")
    directory.close()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    ready, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        os.close(log)
        _wait(child, ready)
        return None
    os.close(ready)

    def detached() -> None:
        os.setsid()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        null = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((0, null), (1, log), (2, log)):
            os.dup2(target, number)
        os.write(tell, b"r")
        for spare in (null, log, tell):
            os.close(spare)

    return detached, path


def _wait(child: int, ready: int) -> None:
    """Wait until the server says that it is ready, or ends; signals of the terminal reach it by themselves."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    try:
        said = os.read(ready, 1)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminate)
        os.close(ready)
    if not said:
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
