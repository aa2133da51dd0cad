"""The folder of saved prefills, bounded in bytes: the least recently used are deleted first. Imports no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvcli.documents.kept import DocumentCache
from kvcli.errors import DamagedError, KvcliError, UsageError
from kvcli.prompt_cache.file_format import SUFFIX, CacheHeader, header
from kvcli.prompt_cache.key import CacheKey
from kvcli.utils import files
from kvcli.utils.sizes import parse_size

LIMIT = 20 * 2**30
"""Most bytes of all saved prefills, unless ``$KVCLI_CACHE_LIMIT`` is set."""

_OLD = 24 * 3600
"""Seconds after which a temporary file belongs to no process."""


_HELD: set[Path] = set()
"""Files that this process writes."""


@dataclass(frozen=True)
class CacheEntry:
    """One file; if it is damaged, ``header`` is ``None``, and ``fault`` says why."""

    path: Path
    size: int
    used: float
    header: CacheHeader | None
    fault: str | None = None

    @classmethod
    def of(cls, path: Path) -> CacheEntry:
        """The saved prefill in a file, damaged or not. Raises ``OSError``."""
        stat = path.stat()
        try:
            return cls(path, stat.st_size, stat.st_mtime, header(path))
        except DamagedError as error:
            return cls(path, stat.st_size, stat.st_mtime, None, error.message)

    @property
    def key(self) -> str:
        """The file's name without its suffix; in the cache directory it is the id."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def id(self) -> str:
        """The id of the saved prefill, wherever its file is."""
        return self.key if self.header is None else self.header.meta.identity.key


class CacheDirectory:
    """The folder of saved prefills.

    Args:
        folder: of mode 0700; made if it does not exist.
        limit: bytes of all files together.
        texts: where the indexes of documents' sentences are stored, if anywhere.
    """

    def __init__(self, folder: Path, limit: int = LIMIT, texts: DocumentCache | None = None) -> None:
        self.folder, self.limit, self.texts = folder, limit, texts

    @classmethod
    def default(cls) -> CacheDirectory:
        """In kvcli's cache directory. Raises ``UsageError`` for a limit that is no size."""
        text = os.environ.get("KVCLI_CACHE_LIMIT")
        limit = LIMIT if text is None else parse_size(text, "KVCLI_CACHE_LIMIT")
        return cls(files.private_dir(files.cache_dir() / "readings"), limit, DocumentCache.default())

    def path(self, identity: CacheKey) -> Path:
        """The file of a saved prefill. It need not exist."""
        return self.folder / f"{identity.key}{SUFFIX}"

    def entries(self) -> list[CacheEntry]:
        """All saved prefills, the last used first."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # gone since
                found.append(CacheEntry.of(path))
        return sorted(found, key=lambda e: (-e.used, e.key))

    def documents(self) -> set[str]:
        """The digests of the documents whose prefills are saved here."""
        found = set[str]()
        for entry in self.entries():
            if entry.header is None:
                continue
            with suppress(OSError, ValueError, KeyError, KvcliError):
                found.add(str(json.loads(entry.header.read("document"))["sha256"]))
        return found

    def find(self, key: str) -> CacheEntry:
        """The one entry whose key begins with ``key``. Raises ``UsageError`` for none or several."""
        found = [e for e in self.entries() if key and e.key.startswith(key)]
        if len(found) != 1:
            count = f"{len(found)} saved prefills begin" if found else "no saved prefill begins"
            raise UsageError(f"{count} with '{key}'", "kvcli cache ls")
        return found[0]

    def resumable(self, identity: CacheKey) -> list[CacheHeader]:
        """Saved prefills that a longer text can continue, those that read most first."""
        found = [e.header for e in self.entries() if e.header is not None]
        same = [h for h in found if h.meta.edge and h.meta.identity.family == identity.family]
        return sorted(same, key=lambda h: -h.meta.edge)

    def touch(self, path: Path) -> None:
        """Mark a file as used now."""
        with suppress(OSError):
            os.utime(path)

    def remove(self, entry: CacheEntry) -> None:
        """Delete one. Raises ``OSError``."""
        entry.path.unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / "locks" / f"{entry.path.name}.lock").unlink(missing_ok=True)

    def prune(self, limit: int | None = None, *, older: float | None = None, exclude: str = "") -> list[CacheEntry]:
        """Delete damaged ones, those unused for ``older`` seconds, and the least recently used until ``limit`` holds.

        Caches of one question are deleted before caches of any question. ``exclude`` is a key whose file stays and
        does not count: it is about to be replaced. Returns what was deleted.
        """
        limit = self.limit if limit is None else limit
        self._sweep()
        entries = self.entries()
        total = sum(e.size for e in entries if e.key != exclude)
        bound = [e for e in entries if e.header is None or e.header.meta.identity.question]
        gone = []
        for entry in [*reversed(bound), *(e for e in reversed(entries) if e not in bound)]:
            stale = older is not None and time.time() - entry.used > older
            if entry.key != exclude and (entry.header is None or stale or total > limit):
                self.remove(entry)
                total -= entry.size
                gone.append(entry)
        return gone

    @contextmanager
    def lock(self, path: Path, *, timeout: float = 0.0) -> Iterator[bool]:
        """Be the one writer of a file; gives ``False`` if another one still is after ``timeout`` seconds.

        The system frees the lock of a process that ends, however it ends.
        """
        from filelock import FileLock, Timeout

        folder = files.private_dir(self.folder / "locks")
        lock = FileLock(folder / f"{path.name}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=timeout, poll_interval=0.1)
        except Timeout:
            yield False
            return
        _HELD.add(path)
        try:
            for left in self.folder.glob(f"{path.name}.*.tmp"):  # of a writer that was killed
                left.unlink(missing_ok=True)
            yield True
        finally:
            _HELD.discard(path)
            lock.release()

    def locked_here(self, path: Path) -> bool:
        """Whether this process itself writes the file, so that waiting for it could last for ever."""
        return path in _HELD

    def _sweep(self) -> None:
        """Delete temporary files of writers that were killed long ago."""
        for left in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _OLD:
                    left.unlink()
