"""The documents of a run, or a saved prefill (``book.kv``) instead of a document or before further ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from kvcli import documents
from kvcli.cli.options import RunOptions
from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.documents import STDIN, Document, Options
from kvcli.documents.document import join_documents
from kvcli.documents.kept import DocumentCache
from kvcli.documents.reader import is_url
from kvcli.errors import InputError, UsageError
from kvcli.prompt_cache.file_format import CacheHeader, damaged, header, looks_like
from kvcli.utils.from_json import from_json

if TYPE_CHECKING:
    from kvcli.documents.web import Web


@dataclass(frozen=True)
class Saved:
    """A saved prefill that was named on the command line."""

    header: CacheHeader
    document: Document

    @property
    def path(self) -> Path:
        return self.header.path


def find(files: Sequence[str]) -> tuple[Saved | None, tuple[str, ...]]:
    """The saved prefill among ``files``, and the other files.

    Raises:
        UsageError: there are two, or it is not the first file.
        DamagedError: it is damaged.
    """
    named = [name for name in files if name != STDIN and looks_like(Path(name))]
    if not named:
        return None, tuple(files)
    if len(named) > 1:
        raise UsageError(
            f"{named[0]} and {named[1]} are both saved prefills; only one can be used", f"leave out {named[1]}"
        )
    if files[0] != named[0]:
        raise UsageError(
            f"the saved prefill {named[0]} must be the first file, before {files[0]}",
            f"kvcli ask {named[0]} {files[0]} …",
        )
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
        raise damaged(found.path, f"its document is invalid ({str(error)[:80]})") from None


def document_cache(options: RunOptions) -> DocumentCache | None:
    """Where extracted texts are kept, unless options forbid it."""
    return DocumentCache.default(reuse=not options.rebuild) if options.cache else None


def read_documents(options: RunOptions, files: Sequence[str], stdin: bytes | None = None) -> Document:
    """The text of files and web addresses. Texts and pages that the cache has are used again, unless options forbid it.

    Raises ``InputError`` and ``UsageError`` as :func:`kvcli.documents.read`.
    """
    kept = document_cache(options)
    with _say_if_waiting(files, quiet=options.quiet):
        return documents.read(files, stdin, options.reading, kept, web(options, files, kept))


def read_with_pictures(options: RunOptions, files: Sequence[str], stdin: bytes | None = None) -> Document | None:
    """The text of files and the pictures that options name; ``None`` if there is nothing. Raises as ``read``."""
    if not (options.images or options.image_pages):
        return read_documents(options, files, stdin) if files or stdin is not None else None
    from kvcli.documents import pictures

    named = files or ((STDIN,) if stdin else ())
    return pictures.read(named, options.images, options.image_pages, lambda: read_documents(options, named, stdin))


def web(options: RunOptions, files: Sequence[str], kept: DocumentCache | None) -> Web | None:
    """How the web addresses among ``files`` are fetched; ``None`` if there are none."""
    urls = [name for name in files if is_url(name)]
    if not urls:
        return None
    from kvcli.documents.web import Web

    if not options.quiet:
        row.start(f"fetching {urls[0]}")
    return Web(options.offline, options.allow_private, kept, partial(terminal.note, "web", quiet=options.quiet))


Load = Callable[[Sequence[str]], Document | None]


def read(files: Sequence[str], load: Load, chosen: Options) -> tuple[Saved | None, Document | None]:
    """The saved prefill among ``files``, and the document: its text followed by that of the other files.

    Raises ``UsageError`` if document options are ``chosen`` and there are no other files.
    """
    saved, rest = find(files)
    if saved is None:
        return None, load(rest)
    if not rest and chosen != Options():
        raise UsageError(
            f"{saved.path} is a saved prefill, and document options do not apply to it",
            "leave out --pages, --include, --exclude and --ocr",
        )
    more = load(rest) if rest else None
    return saved, join_documents(saved.document, more) if more else saved.document


@dataclass(frozen=True)
class Inputs:
    """The documents of a run.

    Attributes:
        options: with what a saved prefill brings: recipe, chunk size, dtype, system message.
        document: the text; ``None`` if no file was named.
        saved: the saved prefill that was named instead of a document, or before further files.
        extract_s: seconds that extracting the text took.
    """

    options: RunOptions
    document: Document | None
    saved: Saved | None
    extract_s: float


@contextmanager
def _say_if_waiting(files: Sequence[str], *, quiet: bool) -> Iterator[None]:
    """Say after a second which pipe of the command line is being waited for: nobody may ever write into it."""
    pipes = [name for name in files if name != STDIN and _is_pipe(name)]
    clock = threading.Timer(
        1.0, lambda: terminal.note("document", f"waiting for {' and '.join(pipes)}, a pipe", quiet=quiet)
    )
    clock.daemon = True
    if pipes:
        clock.start()
    try:
        yield
    finally:
        clock.cancel()


def _is_pipe(name: str) -> bool:
    try:
        return Path(name).is_fifo()
    except (OSError, ValueError):
        return False


def open_documents(given: RunOptions, files: Sequence[str], stdin: bytes | None = None) -> Inputs:
    """Read the documents, or the saved prefill that was named instead, and pictures.

    Raises:
        UsageError: options that do not apply to a saved prefill.
        InputError, DamagedError: a file cannot be read.
    """
    start = perf_counter()

    def load(names: Sequence[str]) -> Document | None:
        return read_with_pictures(given, names, stdin)

    saved, document = read(files, load, given.reading)
    if saved is None:
        return Inputs(given, document, None, perf_counter() - start)
    if given.images or given.image_pages:
        raise UsageError(
            f"pictures precede the text, and {saved.path} was read without these", "name the document instead"
        )
    if given.rebuild:
        raise UsageError(f"--rebuild cannot be used with the saved prefill {saved.path}", "name the document instead")
    if given.query_aware:
        raise UsageError(
            f"--query-aware cannot be used with the saved prefill {saved.path}",
            "leave out --query-aware, or name the document instead",
        )
    meta = saved.header.meta
    options = replace(
        given,
        brought=given.policy is None and given.chunk is None,
        policy=given.policy or (meta.recipe if given.kv_bits is None else "") or meta.identity.recipe,
        chunk=given.chunk or meta.identity.chunk,
        dtype=given.dtype or meta.identity.dtype,
        system=given.system or meta.system,
        raw=given.raw or meta.raw,
    )
    return Inputs(options, document, saved, perf_counter() - start)
