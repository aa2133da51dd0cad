"""Extracted texts and fetched web pages on disk: a document is fetched and laid out once, not for each question.

The key of a text has the digest of the file's bytes, its name (messages have it), the options, and the versions of the
readers. The key of a web page is its address. An entry that is damaged is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kvcli.documents.document import Extract, Part, Source
from kvcli.errors import KvcliError
from kvcli.utils import files
from kvcli.utils.from_json import from_json
from kvcli.utils.sizes import parse_size
from kvcli.utils.version import __version__

LIMIT = 1 << 30
"""Bytes of all entries together, unless a twentieth of ``$KVCLI_CACHE_LIMIT`` is less."""

_SHARE = 20
_SUFFIX = ".text"
_OLD = 24 * 3600
"""Seconds after which a temporary file belongs to no process any more."""

_LIBRARIES = ("pypdfium2", "pypdf", "lxml", "selectolax", "openpyxl", "striprtf", "rapidocr")


@dataclass(frozen=True)
class KeptText:
    """One entry: its file, the name of the document, its size in bytes and when it was last used (seconds)."""

    path: Path
    name: str
    size: int
    used: float


class DocumentCache:
    """A folder of texts and web pages; the least recently used are deleted first.

    Args:
        folder: 0700.
        limit: bytes of all entries together.
        reuse: whether entries are looked for; new ones replace them in any case.
    """

    def __init__(self, folder: Path, limit: int = LIMIT, *, reuse: bool = True) -> None:
        self.folder, self.limit, self.reuse = folder, limit, reuse

    @classmethod
    def default(cls, *, reuse: bool = True) -> DocumentCache | None:
        """In kvcli's cache directory; ``None`` if that cannot be used."""
        text = os.environ.get("KVCLI_CACHE_LIMIT")
        try:
            limit = LIMIT if text is None else min(LIMIT, parse_size(text, "KVCLI_CACHE_LIMIT") // _SHARE)
            return cls(files.private_dir(files.cache_dir() / "texts"), limit, reuse=reuse)
        except KvcliError:
            return None

    def path(self, source: Source, reader: str) -> Path:
        """Where the text of a file is, or would be."""
        options = source.options
        about = [_versions(), reader, source.name, source.suffix, options.pages, options.ocr]
        digest = hashlib.sha256(json.dumps(about).encode())
        digest.update(source.data)
        return self.folder / f"{digest.hexdigest()}{_SUFFIX}"

    def get(self, path: Path) -> Extract | None:
        """The text of an entry; ``None`` if there is none, or a damaged one."""
        _, body = self.load(path)
        try:
            found = json.loads(zlib.decompress(body))
            return from_json(Extract, {**found, "parts": [asdict(Part(*part)) for part in found["parts"]]})
        except (ValueError, TypeError, KeyError, RecursionError, zlib.error):
            return None

    def put(self, path: Path, name: str, extract: Extract) -> None:
        """Keep the text of the file ``name``."""
        found = asdict(extract)
        found["parts"] = [list(part.values()) for part in found["parts"]]
        self.save(path, {"name": name}, zlib.compress(json.dumps(found).encode(), 1))

    def load(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """Return an entry's description and its bytes; ``{}`` and no bytes if it is missing or damaged."""
        if self.reuse:
            with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                head, body = path.read_bytes().split(b"\n", 1)
                about: dict[str, Any] = json.loads(head)
                if about["digest"] == _digest(about, body):
                    os.utime(path)
                    return about, body
        return {}, b""

    def save(self, path: Path, about: dict[str, Any], body: bytes) -> None:
        """Keep an entry. What the disk does not take is made again the next time."""
        data = json.dumps({**about, "digest": _digest(about, body)}).encode() + b"\n" + body
        with suppress(OSError):
            if len(data) <= self.limit:
                self.prune(self.limit - len(data))
                with files.atomic_write(path) as temporary:
                    temporary.write_bytes(data)

    def entries(self) -> list[KeptText]:
        """All entries, the most recently used first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # deleted since
                state = path.stat()
                found.append(KeptText(path, _name(path), state.st_size, state.st_mtime))
        return sorted(found, key=lambda e: (-e.used, e.path))

    def remove(self, names: Iterable[str] | None = None) -> list[KeptText]:
        """Delete the texts of the files with these names, or all; returns what was deleted. Raises ``OSError``."""
        wanted = None if names is None else {*names}
        gone = [e for e in self.entries() if wanted is None or e.name in wanted]
        for entry in gone:
            entry.path.unlink(missing_ok=True)
        return gone

    def prune(self, limit: int | None = None, *, older: float | None = None) -> list[KeptText]:
        """Delete those unused for ``older`` seconds, and the least recently used until ``limit`` bytes are left.

        Returns what was deleted. Raises ``OSError``.
        """
        limit, now = self.limit if limit is None else limit, time.time()
        for left in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if now - left.stat().st_mtime > _OLD:
                    left.unlink()
        entries, gone = self.entries(), list[KeptText]()
        total = sum(e.size for e in entries)
        for entry in reversed(entries):
            if total > limit or (older is not None and now - entry.used > older):
                entry.path.unlink(missing_ok=True)
                total -= entry.size
                gone.append(entry)
        return gone


def _digest(about: dict[str, Any], body: bytes) -> str:
    """Digest of an entry's description and bytes."""
    described = sorted((key, value) for key, value in about.items() if key != "digest")
    return hashlib.sha256(json.dumps(described).encode() + body).hexdigest()


def _name(path: Path) -> str:
    """The name of the document in an entry; empty if the entry is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError), path.open("rb") as file:
        return str(json.loads(file.readline(1 << 16))["name"])
    return ""


@cache
def _versions() -> list[object]:
    """What a text depends on besides the file: kvcli, its readers as they are on this disk, and their libraries."""
    modules = [p.stat() for p in Path(__file__).parent.rglob("*.py")]
    found: list[object] = [__version__, len(modules), max(m.st_mtime_ns for m in modules)]
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found
