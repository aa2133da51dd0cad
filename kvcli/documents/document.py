"""What reading gives: one text, and for each stretch of it the file, page, section and line it came from."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Span:
    """Where the characters ``start`` to ``end`` (exclusive) of ``Document.text`` came from.

    ``body`` is where the source's own words begin: after the file's header and the mark ``[page 12]``, which are
    kvcli's. ``page`` is the page number, counted from 1, and ``label`` is what is printed on the page (``iv``). Both
    are ``None`` if the format has no pages. ``section`` is the path of headings above the text. ``line`` is the line
    at ``body``, counted from 1: in the file (text formats), or in the extracted text of the page or file (others).
    """

    start: int
    end: int
    body: int
    file: str
    page: int | None = None
    label: str | None = None
    section: str | None = None
    line: int = 1

    @property
    def place(self) -> dict[str, Any]:
        """File, page and section as JSON, with the names of the schema ``kvcli/1``."""
        return {"source": self.file, "page": self.page, "label": self.label, "section": self.section}


@dataclass(frozen=True)
class Picture:
    """A picture that a model reads before the text; ``page`` is set for a page of a PDF.

    ``sha256`` is that of ``data``, the content of an image file; a document of a saved prefill has no ``data``.
    """

    name: str
    sha256: str
    width: int
    height: int
    page: int | None = None
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Document:
    """One text made of one or more files.

    ``files`` are the names as given (``stdin`` for standard input; a directory's files one by one). ``bytes`` is their
    size together, and ``sha256`` the digest of their bytes one after the other: ``cat FILES | sha256sum`` prints the
    same. ``pages`` is how many pages were read, ``None`` if no file has any. ``spans`` cover the text without a gap,
    in order. ``notes`` say what was done on purpose (running heads left out); ``warnings`` what may be missing or
    wrong. ``without_text`` are pages that were asked for and gave nothing to read, as ``(file, page)``. ``pictures``
    are read before the text.
    """

    text: str
    files: tuple[str, ...]
    sha256: str
    bytes: int
    warnings: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    pages: int | None = None
    notes: tuple[str, ...] = ()
    without_text: tuple[tuple[str, int], ...] = ()
    pictures: tuple[Picture, ...] = ()

    @classmethod
    def of_text(cls, text: str, name: str = "text") -> Document:
        """A document of one plain text that comes from no file."""
        data = text.encode("utf-8", "surrogatepass")
        spans = (Span(0, len(text), 0, name),) if text else ()
        return cls(text, (name,), hashlib.sha256(data).hexdigest(), len(data), (), spans, None)

    def at(self, offset: int) -> Span:
        """The span that holds character ``offset`` of the text. Raises ``IndexError`` outside it."""
        if not 0 <= offset < len(self.text):
            raise IndexError(f"character {offset} of {len(self.text)}")
        return self.spans[bisect_right(self.spans, offset, key=lambda s: s.start) - 1]

    def line(self, offset: int) -> int:
        """The line of character ``offset``, counted as ``Span.line`` is."""
        span = self.at(offset)
        return span.line + self.text.count("\n", span.body, max(offset, span.body))


@dataclass(frozen=True)
class Options:
    """How to read. ``pages`` are ranges of page numbers (see :mod:`kvcli.documents.pages`), none for all."""

    pages: tuple[tuple[int, int | None], ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ocr: bool = False


@dataclass
class Part:
    """A stretch of one file, in the order of reading; its first ``body`` characters are kvcli's own mark."""

    text: str
    body: int = 0
    page: int | None = None
    label: str | None = None
    section: str | None = None
    line: int = 1


@dataclass
class Extract:
    """What a reader makes of one file. ``pages`` counts those read; ``without_text`` names those with nothing."""

    parts: list[Part]
    pages: int | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    without_text: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """One file for a reader: ``name`` for messages, ``quoted`` for commands, ``suffix`` (``.pdf``) for its format.

    ``inner``: it is inside another file.
    """

    data: bytes
    name: str
    quoted: str
    options: Options = Options()
    suffix: str = ""
    inner: bool = False


def join_documents(first: Document, more: Document) -> Document:
    """One document of two, the second one's name above it as among several files."""
    between = f"\n\n=== {more.files[0]} ===\n\n" if len(more.files) == 1 else "\n\n"
    at, own = len(first.text), len(first.text) + len(between)
    moved = tuple(
        replace(
            span,
            start=at if not i else span.start + own,  # the words between belong to the first span after them
            end=span.end + own,
            body=span.body + own,
        )
        for i, span in enumerate(more.spans)
    )
    pages = [d.pages for d in (first, more) if d.pages is not None]
    return replace(
        first,
        text=first.text + between + more.text,
        files=first.files + more.files,
        sha256=hashlib.sha256((first.sha256 + more.sha256).encode()).hexdigest(),
        bytes=first.bytes + more.bytes,
        warnings=more.warnings,
        spans=first.spans + moved,
        pages=sum(pages) if pages else None,
        notes=more.notes,
        without_text=first.without_text + more.without_text,
    )


def document_json(document: Document) -> dict[str, Any]:
    """Everything that a document knows of itself but its text, as JSON."""
    return {f.name: _plain(getattr(document, f.name)) for f in fields(document) if f.name != "text"}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "data"}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
