"""ZIP files with bounds: nothing is unpacked to disk, and no member grows beyond what a book can be."""

import posixpath
import zipfile
import zlib
from io import BytesIO
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from kvcli.documents.document import Source
from kvcli.errors import InputError

MEMBERS = 20_000
"""Entries of one archive."""

MEMBER = 128 << 20
"""Bytes one member may unpack to."""

TOTAL = 512 << 20
"""Bytes that may be unpacked of one archive."""


class Archive:
    """The members of a ZIP file by name. Every failure is an ``InputError`` that names the file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.room = TOTAL
        try:
            self.zip = zipfile.ZipFile(BytesIO(source.data))
            self.names = {i.filename: i for i in self.zip.infolist()}
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
            raise self._damaged(str(error)) from None
        if len(self.names) > MEMBERS:
            raise InputError(f"{source.name} has {len(self.names):,} members; kvcli reads up to {MEMBERS:,}", _AGAIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.zip.close()

    def _damaged(self, why: str) -> InputError:
        size = f"{len(self.source.data):,} bytes"
        return InputError(f"{self.source.name} is damaged: {why[:120].lower() or 'no ZIP archive'} ({size})", _AGAIN)

    def read(self, name: str) -> bytes:
        """The bytes of a member, counted while they are unpacked: what its header says may be a lie."""
        info = self.names.get(name)
        if info is None:
            raise self._damaged(f"{name} is missing")
        if info.flag_bits & 1:
            raise InputError(f"{self.source.name} is encrypted: {name} needs a password", "remove its password first")
        limit = min(MEMBER, self.room)
        try:
            with self.zip.open(info) as member:
                data = member.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError, RuntimeError) as e:
            raise self._damaged(f"{name}: {e}") from None
        if len(data) > limit:
            raise InputError(
                f"{self.source.name} is a ZIP bomb or no book: {name} unpacks to more than {limit >> 20:,} MiB", _AGAIN
            )
        self.room -= len(data)
        return data


_AGAIN = "fetch the file again"


def resolve(base: str, href: str) -> str | None:
    """The member that ``href`` in member ``base`` means; ``None`` for what is not in the archive."""
    path = unquote(href.partition("#")[0].partition("?")[0])
    if not path or path.startswith("/") or "://" in path or "\\" in path:
        return None
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(base), path))
    return None if joined.startswith("..") else joined
