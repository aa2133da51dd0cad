"""``book.kv`` among the files: a saved reading instead of a document, or in front of further ones."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from kvcli.documents import STDIN, Document, Options
from kvcli.errors import InputError, UsageError
from kvcli.prompt_cache.file_format import CacheHeader, damaged, header, looks_like
from kvcli.utils.from_json import from_json


@dataclass(frozen=True)
class Saved:
    """A saved reading that was named on the command line."""

    header: CacheHeader
    document: Document

    @property
    def path(self) -> Path:
        return self.header.path


def find(files: Sequence[str]) -> tuple[Saved | None, tuple[str, ...]]:
    """The saved reading among ``files``, and the other files.

    Raises:
        UsageError: there are two, or other files stand before it.
        DamagedError: it is damaged.
    """
    named = [name for name in files if name != STDIN and looks_like(Path(name))]
    if not named:
        return None, tuple(files)
    if len(named) > 1:
        raise UsageError(f"{named[0]} and {named[1]} are both saved readings: one at a time", f"leave out {named[1]}")
    if files[0] != named[0]:
        raise UsageError(f"{files[0]} stands before the saved reading {named[0]}", "name the saved reading first")
    try:
        found = header(Path(named[0]))
    except OSError as error:
        raise InputError(f"{named[0]} cannot be read: {error.strerror}", f"ls -l {named[0]}") from None
    return Saved(found, _document(found)), tuple(files[1:])


def _document(found: CacheHeader) -> Document:
    try:
        about = json.loads(found.read("document"))
        return from_json(Document, {**about, "text": found.read("text").decode("utf-8", "surrogatepass")})
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(found.path, f"its document makes no sense ({str(error)[:80]})") from None


def joined(first: Document, more: Document) -> Document:
    """One document of two, the second one's name above it as among several files."""
    between = f"\n\n=== {more.files[0]} ===\n\n" if len(more.files) == 1 else "\n\n"
    at, own = len(first.text), len(first.text) + len(between)
    moved = tuple(
        replace(
            span,
            start=at if not i else span.start + own,  # the words between belong to the first span behind them
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


def about(document: Document) -> dict[str, Any]:
    """Everything that a document knows of itself but its text, as JSON."""
    return {f.name: _plain(getattr(document, f.name)) for f in fields(document) if f.name != "text"}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


Load = Callable[[Sequence[str]], Document | None]


def read(files: Sequence[str], load: Load, chosen: Options) -> tuple[Saved | None, Document | None]:
    """The saved reading among ``files``, and the document: its text, that of the other files by ``load``, or both.

    Raises ``UsageError`` where options are ``chosen`` and there is nothing but a saved reading.
    """
    saved, rest = find(files)
    if saved is None:
        return None, load(rest)
    if not rest and chosen != Options():
        raise UsageError(
            f"{saved.path} is a saved reading: its text is read already",
            "leave out --pages, --include, --exclude and --ocr",
        )
    more = load(rest) if rest else None
    return saved, joined(saved.document, more) if more else saved.document
