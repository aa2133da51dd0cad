"""Where kvcli keeps what it makes: one cache directory, readable by its owner alone.

A KV cache contains the document it was made from, so every directory is 0700 and every file 0600. Weights
from the hub stay in the Hugging Face cache; only what kvcli converted itself is here.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvcli.errors import KvcliError, ResourceError

watch: Callable[[str, int, int], None] | None = None
"""Told the name of a file, how many of its bytes are read, and how many it has: a screen may show them."""

_BLOCK = 1 << 22

_SETTLED_S = 0.1
"""A file that changed less than so many seconds ago may change again within one tick of the file system's clock."""


def cache_dir() -> Path:
    """``$KVCLI_CACHE_DIR``, else the platform's cache directory for kvcli; created on first use."""
    override = os.environ.get("KVCLI_CACHE_DIR")
    if override:
        return private_dir(Path(override).expanduser().absolute())
    from platformdirs import user_cache_path

    return private_dir(_absolute(user_cache_path("kvcli", appauthor=False), "KVCLI_CACHE_DIR"))


def data_dir() -> Path:
    """``$KVCLI_DATA_DIR``, else the platform's data directory: files that the user made."""
    override = os.environ.get("KVCLI_DATA_DIR")
    if override:
        return private_dir(Path(override).expanduser().absolute())
    from platformdirs import user_data_path

    return private_dir(_absolute(user_data_path("kvcli", appauthor=False), "KVCLI_DATA_DIR"))


def _absolute(path: Path, variable: str) -> Path:
    """Refuse what becomes of ``~`` if the user has no home: a folder of that name in the working directory."""
    if not path.is_absolute() or "~" in path.parts:
        raise ResourceError(f"there is no home directory for {path.name}'s files", f"export {variable}=/a/folder")
    return path


def private_dir(path: Path) -> Path:
    """Create a directory, 0700. An existing one keeps its mode, which the user may have chosen."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot create {path}: {error.strerror}", "set KVCLI_CACHE_DIR to a place you can write"
        ) from None
    return path


def require_space(path: Path, size: int, what: str) -> None:
    """Refuse, before the first byte is written, if ``size`` bytes cannot fit on the disk of ``path``."""
    free = shutil.disk_usage(path).free
    if free < size:
        raise ResourceError(
            f"{what} needs {size / 2**20:,.0f} MiB and {path} has {free / 2**20:,.0f} MiB free",
            "kvcli cache prune, or set KVCLI_CACHE_DIR to a larger disk",
        )


def sync(directory: Path) -> None:
    """Make every file under ``directory`` 0600 and durable: the last step before its rename."""
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)
            continue
        path.chmod(0o600)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished directory its name. Readers see all of it or nothing of it."""
    sync(temporary)
    temporary.rename(final)
    _fsync_directory(final.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file to, 0600, which then takes the place of ``path``, durably.

    Readers see the old file or the whole new one. Where anything fails the old one stays and nothing else is left.
    Raises ``OSError``.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _fsync_directory(path.parent)


def _fsync_directory(directory: Path) -> None:
    """A rename is durable only once its directory is."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def disk(what: str) -> Iterator[None]:
    """Raise :class:`ResourceError` if a disk or a quota is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(f"the disk is full: {what}", "kvcli cache prune, or set KVCLI_CACHE_DIR") from None


def directory_key(path: Path) -> Hashable:
    """Tells whether a file of a directory was changed, replaced, added or removed."""
    with os.scandir(path) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return str(path.resolve()), tuple(sorted((n, s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns) for n, s in found))


def sha256(path: Path) -> str:
    """64 hexadecimal digits of a file that is read once; remembered by device, inode, size and times of change.

    Raises:
        OSError: it cannot be read.
    """
    before = _state(path)
    name = hashlib.sha256(" ".join(map(str, before)).encode()).hexdigest()
    place: Path | None = None
    with suppress(OSError, KvcliError):  # without a cache it is read every time
        place = private_dir(cache_dir() / "digests") / name
        found = place.read_text("ascii", errors="replace")
        if re.fullmatch("[0-9a-f]{64}", found):
            return found
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if watch is not None:
                watch(path.name, done, before[2])
    settled = time.time() - max(before[3], before[4]) / 1e9 > _SETTLED_S
    if place is not None and settled and _state(path) == before:
        with suppress(OSError), atomic_write(place) as temporary:
            temporary.write_text(digest.hexdigest(), "ascii")
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int, int, int, int]:
    info = os.stat(path)  # noqa: PTH116
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
