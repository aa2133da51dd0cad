"""Documents that clients have uploaded or that the command line named; kept in memory, addressed by id."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
import uuid
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kvcli import documents
from kvcli.documents.document import Document, Source
from kvcli.documents.pdf.picture import picture
from kvcli.server.errors import ApiError

AROUND = 600
"""Characters of a text that are shown before and after a passage."""

LONGEST = 5_000
"""Characters that are marked on a page."""


@dataclass(frozen=True)
class UploadedFile:
    """One document.

    Attributes:
        id: ``file-`` and the beginning of the content's digest: the same content has the same id.
        name: the client's name for it, without folders.
        document: its text.
        created: seconds since 1970.
        path: a PDF, from which pages are drawn; ``None`` for other formats.
    """

    id: str
    name: str
    document: Document
    created: int
    path: Path | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """As OpenAI's file object, and what kvcli knows besides."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.document.bytes,
            "created_at": self.created,
            "filename": self.name,
            "purpose": "user_data",
            "status": "processed",
            "kvcli": {
                "characters": len(self.document.text),
                "pages": self.document.pages,
                "pictures": self.path is not None,
                "warnings": list(self.document.warnings),
            },
        }


class Uploads:
    """The documents of one server.

    Args:
        root: a folder whose files requests may name by relative paths; ``None`` for none.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = None if root is None else root.resolve(strict=True)
        self._files: dict[str, UploadedFile] = {}
        self._folder: Path | None = None

    def __iter__(self) -> Any:
        return iter(list(self._files.values()))

    def add(self, document: Document, name: str, path: Path | None = None) -> UploadedFile:
        """Register a document that was read already; ``path`` is its file, if it is a PDF."""
        digest = hashlib.sha256(f"{document.sha256} {name}".encode()).hexdigest()
        found = UploadedFile(f"file-{digest[:24]}", name, document, int(time.time()), path)
        return self._files.setdefault(found.id, found)

    def read(self, data: bytes, filename: str, path: Path | None = None) -> UploadedFile:
        """Extract the text of an uploaded file, or of one at ``path``. Takes a while: call it in a thread.

        Raises:
            InputError: there is no text in it, or its format is not supported.
        """
        name = PurePosixPath(filename.replace("\\", "/")).name or "upload"
        with tempfile.TemporaryDirectory(prefix="kvcli-upload-") as folder:
            copy = Path(folder, "file" + Path(name).suffix[:16])
            copy.write_bytes(data)
            document = documents.read([str(copy)])
        pdf = data.startswith(b"%PDF")
        if pdf and path is None:
            path = self._place(uuid.uuid4().hex)
            path.write_bytes(data)
        spans = tuple(replace(span, file=name) for span in document.spans)
        return self.add(replace(document, files=(name,), spans=spans), name, path if pdf else None)

    def get(self, file_id: str) -> UploadedFile:
        """Raises :class:`ApiError` (404) for an id that is unknown."""
        try:
            return self._files[file_id]
        except KeyError:
            raise ApiError(404, f"no such file: {file_id}", code="file_not_found") from None

    def find(self, name: str) -> UploadedFile:
        """A document by its id or, below the root, by its relative path. Takes a while: call it in a thread.

        Raises:
            ApiError: 404 for what is unknown or not below the root, whether it exists or not.
            InputError: the file cannot be read.
        """
        if name in self._files or self.root is None:
            return self.get(name)
        try:
            path = (self.root / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return self.get(name)
        if not path.is_relative_to(self.root) or not path.is_file():
            return self.get(name)
        return self.read(path.read_bytes(), str(path.relative_to(self.root)), path)

    def picture(self, file_id: str, page: int, start: int, end: int) -> bytes:
        """A page as PNG, with the words from ``start`` to ``end`` of the text marked. Call it in a thread.

        Raises:
            ApiError: 404 if there is no such page, or the file has changed since it was read.
        """
        file = self.get(file_id)
        data = b""
        if file.path is not None:
            with suppress(OSError):
                data = file.path.read_bytes()
        same = hashlib.sha256(data).hexdigest() == file.document.sha256
        if not same or not any(span.page == page for span in file.document.spans):
            raise ApiError(404, f"{file.name} has no picture of page {page}", code="page_not_found")
        quote = (
            file.document.text[start : min(end, start + LONGEST)].replace("\0", "").encode("utf-8", "ignore").decode()
        )
        return picture(Source(data, file.name, file.name), page, quote)

    def _place(self, name: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="kvcli-uploads-"))
            self._end = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / name

    def close(self) -> None:
        """Delete the files that were kept to draw their pages."""
        if self._folder is not None:
            self._end()

    def passage(self, file_id: str, start: int, end: int) -> dict[str, Any]:
        """The text from ``start`` to ``end``, what is around it, and where it is. Raises :class:`ApiError`."""
        document = self.get(file_id).document
        if not 0 <= start < end <= len(document.text):
            raise ApiError(400, f"the text has {len(document.text)} characters", param="start")
        text = document.text
        return {
            "before": text[max(0, start - AROUND) : start],
            "text": text[start:end],
            "after": text[end : end + AROUND],
            "line": document.line(start),
            **document.at(start).place,
        }

    def delete(self, file_id: str) -> None:
        """Forget a document; its saved prefill stays in the cache directory."""
        file = self._files.pop(self.get(file_id).id)
        if file.path is not None and file.path.parent == self._folder:
            file.path.unlink(missing_ok=True)
