"""Named files, directories, web addresses and standard input to one :class:`Document`."""

from __future__ import annotations

import difflib
import hashlib
import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.documents.document import Document, Extract, Options, Source, Span
from kvcli.documents.folder import walk
from kvcli.documents.formats import HTML, PLAIN, kind
from kvcli.documents.kept import DocumentCache
from kvcli.documents.worker import READERS, ReaderProcess
from kvcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from kvcli.documents.web import Web

STDIN = "-"
"""The name of standard input on a command line."""

READS = "kvcli reads PDF, EPUB, DOCX, PPTX, XLSX, OpenDocument, RTF, HTML, mail, notebooks, text and source files"

LARGEST = 1 << 30
"""Bytes of one file."""

CHARACTERS = 1 << 28
"""Characters of one document: a hundred times the longest novel."""


def read(
    paths: Sequence[str | Path],
    stdin: bytes | None = None,
    options: Options | None = None,
    kept: DocumentCache | None = None,
    web: Web | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> Document:
    """Read ``paths`` in order; ``-`` (or, if no path is given, ``stdin`` alone) is standard input.

    ``contents`` are the bytes of files that are not here, by name.

    A directory stands for its files in the order of their names. Several files are joined with a line ``=== name ===``
    above each. The first has none if files were named one by one. Then a file and a second one begin as the first
    alone, and a saved prefill of it is continued. Texts are taken from ``kept``, and kept there; without ``web`` no
    ``https://…`` is fetched. Raises ``InputError``, and ``UsageError`` for options that do not fit the files.
    """
    options = options or Options()
    names = [str(p) for p in paths] or ([STDIN] if stdin is not None else [])
    if not names:
        raise InputError("no document was given", 'kvcli ask FILE "…"')
    if names.count(STDIN) > 1:
        raise InputError("standard input is named twice", "name - once")
    files, left = expand(names, options)
    extracts: list[tuple[str, Extract]] = []
    digest, total, characters = hashlib.sha256(), 0, 0
    with ReaderProcess() as worker:
        for name in files:
            suffix = Path(name).suffix
            if is_url(name) and web is not None:
                fetched = web.fetch(name)
                data, suffix = fetched.data, fetched.suffix
            elif name == STDIN:
                data = stdin or b""
            else:
                data = contents[name] if contents and name in contents else load_file(name)
            shown, quoted = ("stdin", "FILE") if name == STDIN else (name, shlex.quote(name))
            if not data:
                check = "check the command before the pipe" if name == STDIN else f"see its size: ls -l {quoted}"
                raise InputError(f"{shown} is empty: 0 bytes", check)
            extract = read_one(Source(data, shown, quoted, options, suffix), worker, kept)
            characters += sum(len(p.text) for p in extract.parts)
            if characters > CHARACTERS:
                raise InputError(
                    f"more than {CHARACTERS:,} characters in {len(extracts) + 1:,} files", "name fewer files"
                )
            extracts.append((shown, extract))
            digest.update(data)
            total += len(data)
    if options.pages and all(e.pages is None for _, e in extracts):
        raise UsageError(
            f"--pages: {extracts[0][0]} has no pages", "leave out --pages, or --include and --exclude files"
        )
    return _join(extracts, left, digest.hexdigest(), total, from_folder=len(files) != len(names))


def is_url(name: str) -> bool:
    """Whether a name is the address of a document on the web."""
    return name.lower().startswith(("https://", "http://"))


def read_one(source: Source, worker: ReaderProcess, kept: DocumentCache | None) -> Extract:
    """The text of one file by the reader of its format. Raises ``InputError`` for those that none reads."""
    found = kind(source.data, source.suffix)
    if found is HTML and is_url(source.name) and source.suffix == ".txt":
        found = PLAIN  # a server that shows the source of a page says so
    readable = found.reader and (found.reader != "image" or source.options.ocr)
    if not readable:
        name, hint = f"{source.name} is {found.name}", found.hint.format(source.quoted)
        if found.reader == "image":
            raise InputError(f"{name}: an image without text", hint)
        if found.damaged:
            raise InputError(name, hint)
        raise InputError(f"{name}, which is not supported: {READS}", hint)
    place = None if kept is None or found.reader == "plain" else kept.path(source, found.reader)
    if kept is not None and place is not None and (known := kept.get(place)) is not None:
        return known
    if found.reader in READERS:
        extract = worker.extract(found.reader, source)
    else:
        extract = import_module(f"kvcli.documents.{found.reader}").extract(source)
    if not any(p.text[p.body :].strip() for p in extract.parts):
        raise InputError(
            f"{source.name} is {found.name} without any text", f"look at it: kvcli extract {source.quoted}"
        )
    if kept is not None and place is not None:
        kept.put(place, source.name, extract)
    return extract


def expand(names: list[str], options: Options) -> tuple[list[str], list[str]]:
    """Directories as their files; and what was left out of them."""
    files: list[str] = []
    notes: list[str] = []
    folders = 0
    for name in names:
        if name == STDIN or not os.path.isdir(name):  # noqa: PTH112  # of a name that cannot be, False
            files.append(name)
            continue
        folders += 1
        found = walk(Path(name), options.include, options.exclude)
        files += [str(p) for p in found.files]
        if note := found.note(name):
            notes.append(note)
    if not folders and (given := [f"--{k}" for k in ("include", "exclude") if getattr(options, k)]):
        raise UsageError(
            f"{' and '.join(given)} chooses files of a directory, and none is named", "kvcli ask DIRECTORY …"
        )
    return list(dict.fromkeys(files)), notes


def _join(
    extracts: list[tuple[str, Extract]], left: list[str], sha256: str, size: int, *, from_folder: bool
) -> Document:
    texts: list[str] = []
    spans: list[Span] = []
    at = 0
    for i, (name, extract) in enumerate(extracts):
        several = len(extracts) > 1
        header = f"=== {name} ===\n\n" if several and (i or from_folder) else ""
        last = len(extract.parts) - 1
        for j, part in enumerate(extract.parts):
            text, body, line = part.text, part.body, part.line
            if extract.pages is not None and j == last:
                text = text.rstrip("\n") + "\n"
            if header and not j and not body:
                line += len(text) - len(text.lstrip("\n"))
                text = text.lstrip("\n")
            if several and j == last:
                text = text.rstrip("\n") + ("\n\n" if i + 1 < len(extracts) else "")
            body += 0 if j else len(header)
            text = text if j else header + text
            if text:
                where = (name, part.page, part.label, part.section, line)
                spans.append(Span(at, at + len(text), at + min(body, len(text)), *where))
            texts.append(text)
            at += len(text)
    pages = [e.pages for _, e in extracts if e.pages is not None]
    return Document(
        "".join(texts),
        tuple(n for n, _ in extracts),
        sha256,
        size,
        tuple(w for _, e in extracts for w in e.warnings),
        tuple(spans),
        sum(pages) if pages else None,
        (*left, *(n for _, e in extracts for n in e.notes)),
        tuple((n, page) for n, e in extracts for page in e.without_text),
    )


def load_file(name: str) -> bytes:
    """The bytes of a file. Raises ``InputError``."""
    if is_url(name):
        raise InputError(f"{name} is a web address, which is not fetched here", f"curl -s {shlex.quote(name)}")
    path = Path(name)
    try:
        info = path.stat()
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode)):
            raise InputError(f"{name} is a device, not a file", "give a file, or - for standard input")
        if info.st_size > LARGEST:
            size = f"{info.st_size / 2**30:.1f} GiB"
            raise InputError(f"{name} has {size}; kvcli reads up to {LARGEST >> 30} GiB per file", "split it")
        with path.open("rb") as file:
            data = file.read(info.st_size + 1) if stat.S_ISREG(info.st_mode) else b""
            data += file.read(LARGEST + 1 - len(data))  # a pipe, or a file that grows
        if len(data) > LARGEST:
            raise InputError(f"{name} has no end within {LARGEST >> 30} GiB, the most that kvcli reads", "split it")
        return data
    except FileNotFoundError:
        raise InputError(f"{name} does not exist", _nearest(path)) from None
    except PermissionError:
        raise InputError(f"{name} may not be read: permission denied", f"chmod u+r {shlex.quote(name)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name[:200]} cannot be read: {reason}", "check the name") from None


def _nearest(path: Path) -> str:
    """A hint for a missing file: the most similar name, or a command that lists the directory."""
    folder = path.parent
    try:
        names = [p.name for p in folder.iterdir()]
    except OSError:
        existing = next((p for p in folder.parents if p.is_dir()), Path())
        return f"ls {shlex.quote(str(existing))}"
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(path.name.lower(), list(lower), n=1, cutoff=0.6)
    if close:
        return f"did you mean {shlex.quote(str(path.with_name(lower[close[0]])))}?"
    return f"ls {shlex.quote(str(folder))}"
