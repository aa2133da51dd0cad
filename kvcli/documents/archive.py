"""ZIP files with bounds: nothing is unpacked to disk, and no member grows beyond what a book can be."""

import posixpath
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from kvcli.documents.document import Source
from kvcli.errors import InputError

MEMBERS = 20_000
"""Entries of one archive."""

MEMBER = 128 << 20
"""Bytes one member may unpack to."""

TOTAL = 512 << 20
"""Bytes that may be unpacked of one archive."""

_AGAIN = "fetch the file again"


class Archive:
    """The members of a ZIP file by name, with ``/`` in it. Every failure is an ``InputError`` that names the file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.room = TOTAL
        try:
            self.zip = zipfile.ZipFile(BytesIO(source.data))
            self.names = {i.filename.replace("\\", "/"): i for i in self.zip.infolist()}
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
            raise self.damaged(str(error)) from None
        if len(self.names) > MEMBERS:
            raise InputError(f"{source.name} has {len(self.names):,} members; kvcli reads up to {MEMBERS:,}", _AGAIN)
        self.folded = {_folded(name): name for name in self.names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.zip.close()

    def damaged(self, why: str) -> InputError:
        """The error that says ``why`` the file cannot be read."""
        size = f"{len(self.source.data):,} bytes"
        why = " ".join(why.split())[:120].lower() or "no ZIP archive"
        return InputError(f"{self.source.name} is damaged: {why} ({size})", _AGAIN)

    def read(self, name: str) -> bytes:
        """The bytes of a member, counted while they are unpacked: what its header says may be a lie."""
        info = self.names.get(name)
        if info is None:
            raise self.damaged(f"{name} is missing")
        if info.flag_bits & 1:
            raise InputError(f"{self.source.name} is encrypted: {name} needs a password", "remove its password first")
        limit = min(MEMBER, self.room)
        try:
            with self.zip.open(info) as member:
                data = member.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError, RuntimeError) as e:
            raise self.damaged(f"{name}: {e}") from None
        if len(data) > limit:
            raise InputError(
                f"{self.source.name} is not a usable book: {name} unpacks to more than {limit >> 20:,} MiB", _AGAIN
            )
        self.room -= len(data)
        return data

    def resolve(self, base: str, href: str) -> str | None:
        """The member that ``href`` in member ``base`` means; ``None`` for what is not in the archive.

        Names that differ only in case, in ``%20`` or in how accents are coded mean the member that there is.
        """
        path = href.partition("#")[0].partition("?")[0]
        found = [joined for p in (path, unquote(path)) if (joined := _joined(base, p)) is not None]
        for name in found:
            if name in self.names:
                return name
        for name in found:
            if (known := self.folded.get(_folded(name))) is not None:
                return known
        return found[-1] if found else None


def _joined(base: str, path: str) -> str | None:
    path = path.replace("\\", "/")
    if not path or path.startswith("/") or "://" in path:
        return None
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(base), path))
    return None if joined.startswith("..") else joined


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def xml(archive: Archive, name: str, *, repair: bool = False) -> Any:
    """The root of a member that is XML, or ``None`` if there is nothing to ``repair``. Entities are not expanded.

    Raises ``InputError`` for damage. The parser's own bound on depth stays: 256 levels.
    """
    from lxml import etree

    data = archive.read(name)
    parser = etree.XMLParser(
        recover=repair, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True,
        remove_pis=True,
    )  # fmt: skip
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        if repair:
            return None
        if "depth" in str(error).lower():
            raise InputError(f"{archive.source.name} is nested too deeply to be read", _AGAIN) from None
        raise archive.damaged(f"{name}: {error}".partition(" (<string>")[0]) from None


def elements(root: Any, name: str) -> Iterator[Any]:
    """The elements of this name below ``root`` in order, whatever their namespace."""
    return iter(()) if root is None else root.iter(f"{{*}}{name}")


def attribute(node: Any, name: str) -> str:
    """An attribute by its local name, whatever its prefix; ``""`` without it."""
    value = node.get(name)
    if value is None:
        value = next((v for k, v in node.items() if k.rpartition("}")[2] == name), "")
    return str(value)
