"""Documents that clients have uploaded or that the command line named; kept in memory, addressed by id."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kvcli import documents
from kvcli.documents.document import Document
from kvcli.server.errors import ApiError


@dataclass(frozen=True)
class UploadedFile:
    """One document.

    Attributes:
        id: ``file-`` and the beginning of the content's digest: the same content has the same id.
        name: the client's name for it, without folders.
        document: its text.
        created: seconds since 1970.
    """

    id: str
    name: str
    document: Document
    created: int

    @property
    def facts(self) -> dict[str, Any]:
        """As OpenAI's file object."""
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

    def __iter__(self) -> Any:
        return iter(list(self._files.values()))

    def add(self, document: Document, name: str) -> UploadedFile:
        """Register a document that was read already."""
        digest = hashlib.sha256(f"{document.sha256} {name}".encode()).hexdigest()
        found = UploadedFile(f"file-{digest[:24]}", name, document, int(time.time()))
        return self._files.setdefault(found.id, found)

    def read(self, data: bytes, filename: str) -> UploadedFile:
        """Extract the text of an uploaded file. Takes a while: call it in a thread.

        Raises:
            InputError: there is no text in it, or its format is not supported.
        """
        name = PurePosixPath(filename.replace("\\", "/")).name or "upload"
        with tempfile.TemporaryDirectory(prefix="kvcli-upload-") as folder:
            path = Path(folder, "file" + Path(name).suffix[:16])
            path.write_bytes(data)
            document = documents.read([str(path)])
        spans = tuple(replace(span, file=name) for span in document.spans)
        return self.add(replace(document, files=(name,), spans=spans), name)

    def get(self, file_id: str) -> UploadedFile:
        """Raises :class:`ApiError` (404) for an id that is unknown."""
        try:
            return self._files[file_id]
        except KeyError:
            raise ApiError(404, f"no such file: {file_id}", code="file_not_found") from None

    def id_of(self, name: str) -> str:
        """The id of a document by its name. Raises ``KeyError``."""
        return next(file.id for file in self._files.values() if file.name == name)

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
        return self.read(path.read_bytes(), str(path.relative_to(self.root)))

    def delete(self, file_id: str) -> None:
        """Forget a document; its saved prefill stays in the cache directory."""
        del self._files[self.get(file_id).id]
