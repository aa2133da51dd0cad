"""The private directory with the engines' sockets: ``$XDG_RUNTIME_DIR/kvcli``, else one of this user in ``/tmp``.

A socket is used only if its directory belongs to this user and nobody else may enter it. Both are checked on the open
directory, and sockets are reached through it: nothing that is renamed afterwards leads elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

SUFFIX = ".sock"


class UnsafeDirectory(Exception):
    """The directory belongs to someone else, or others may enter it."""


class SocketDirectory:
    """The open directory; close it with :meth:`close`."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def close(self) -> None:
        os.close(self.descriptor)

    def address(self, key: str) -> str:
        """Where an engine's socket is. Short, whatever the directory's name: a socket's address has 108 bytes."""
        if os.path.isdir(f"/proc/self/fd/{self.descriptor}"):
            return f"/proc/self/fd/{self.descriptor}/{key}{SUFFIX}"
        return os.path.join(self.path, key + SUFFIX)

    def sockets(self) -> list[str]:
        """The engines that have, or had, a socket here."""
        return sorted(name[: -len(SUFFIX)] for name in os.listdir(self.descriptor) if name.endswith(SUFFIX))

    def connect(self, key: str, timeout: float) -> socket.socket | None:
        """A connection to an engine; ``None`` if nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(self.address(key))
        except OSError:
            connection.close()
            return None
        return connection

    def listen(self, key: str) -> socket.socket:
        """A new socket, 0600, in place of one that nobody listens to; call it under :meth:`lock`."""
        self.remove(key)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listening.bind(self.address(key))
        except OSError:
            listening.close()
            raise
        finally:
            os.umask(mask)
        listening.listen(64)
        return listening

    def inode(self, key: str) -> int:
        """Tells one socket from a later one of the same name; 0 without a socket."""
        with contextlib.suppress(OSError):
            return os.stat(key + SUFFIX, dir_fd=self.descriptor).st_ino
        return 0

    def remove(self, key: str) -> None:
        """Delete a socket's file and its log."""
        for name in (key + SUFFIX, f"{key}.log"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)

    def log(self, key: str) -> int:
        """A file, 0600, for what an engine's libraries write outside of any command."""
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW
        return os.open(f"{key}.log", flags, 0o600, dir_fd=self.descriptor)

    @contextlib.contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[None]:
        """Held while a socket is made or deleted. Raises ``BlockingIOError`` without ``wait`` if another holds it."""
        import fcntl

        held = os.open("lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600, dir_fd=self.descriptor)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(held)


def folder() -> str:
    """The path of the directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _mine(runtime):
        return os.path.join(runtime, "kvcli")
    import tempfile  # as dataclasses, it takes a tenth of the client's time

    return os.path.join(tempfile.gettempdir(), f"kvcli-{os.getuid()}")


def _mine(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def open_directory(*, make: bool = True) -> SocketDirectory | None:
    """The directory; ``None`` if it does not exist and is not to be made, or cannot be made.

    Raises:
        UnsafeDirectory: it is not this user's alone.
    """
    if not hasattr(os, "getuid"):  # Windows
        return None
    path = folder()
    if make:
        with contextlib.suppress(OSError):
            os.mkdir(path, 0o700)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if make:
            raise UnsafeDirectory(f"{path} cannot be used for a socket: {error.strerror}") from None
        return None
    found = os.fstat(descriptor)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        os.close(descriptor)
        whose = "another user's" if found.st_uid != os.getuid() else f"open to others (mode {found.st_mode & 0o777:o})"
        raise UnsafeDirectory(f"{path} is {whose}")
    return SocketDirectory(path, descriptor)


def engines() -> list[str]:
    """The engines of this user that have, or had, a socket. Raises :class:`UnsafeDirectory`."""
    directory = open_directory(make=False)
    if directory is None:
        return []
    with contextlib.closing(directory):
        return directory.sockets()
