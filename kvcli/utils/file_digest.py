"""The sha256 of a large file: all of it is read once, and the result is remembered while the file stays as it is."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvcli.errors import KvcliError
from kvcli.utils import files

watch: Callable[[str, int, int], None] | None = None
"""Told the name of a file, how many of its bytes are read, and how many it has: a screen may show them."""

_BLOCK = 1 << 22

_SETTLED_S = 0.1
"""A file that changed less than so many seconds ago may change again within one tick of the file system's clock."""


def sha256(path: Path) -> str:
    """64 hexadecimal digits, remembered by device, inode, size and times of change. Raises ``OSError``."""
    before = _state(path)
    name = hashlib.sha256(" ".join(map(str, before)).encode()).hexdigest()
    place: Path | None = None
    with suppress(OSError, KvcliError):  # without a cache it is read every time
        place = files.private_dir(files.cache_dir() / "digests") / name
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
        with suppress(OSError), files.atomic_write(place) as temporary:
            temporary.write_text(digest.hexdigest(), "ascii")
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int, int, int, int]:
    info = os.stat(path)  # noqa: PTH116
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
