"""``kvcli cache``: saved prefills. Imports no torch."""

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcli.cli.help import Command, Group
from kvcli.cli.option_groups import annotation
from kvcli.cli.options import DEBUG, JSON, QUIET
from kvcli.cli.output import check_export_path
from kvcli.cli.views import terminal
from kvcli.documents.kept import DocumentCache, KeptText
from kvcli.errors import DamagedError, InputError, ResourceError, UsageError
from kvcli.prompt_cache import file_format
from kvcli.prompt_cache.directory import CacheDirectory, CacheEntry
from kvcli.utils.sizes import format_bytes, parse_size

app = typer.Typer(cls=Group, no_args_is_help=True, help="List, check and delete saved prefills.")

One = Annotated[str, typer.Argument(metavar="ID|FILE", help="Id or the beginning of one, or a .kv file.")]
Some = Annotated[
    list[str] | None, typer.Argument(metavar="ID|FILE", help="Saved prefills. Default: all.", show_default=False)
]

_SHORT = 10  # digits of an id that are shown
_AGAIN = "kvcli prefill FILE -o book.kv"


@app.command("ls", cls=Command)
def ls(as_json: JSON = False, _debug: DEBUG = False) -> None:
    """List saved prefills, the last used first."""
    library = CacheDirectory.default()
    entries, kept = library.entries(), _texts().entries()
    if as_json:
        texts = [{"name": e.name, "bytes": e.size, "used": round(e.used, 3), "path": str(e.path)} for e in kept]
        size = sum(e.size for e in entries)
        terminal.print_json(readings=[facts(e) for e in entries], limit=library.limit, bytes=size, texts=texts)
        return
    rows = []
    for e in entries:
        if e.header is None:
            rows.append((e.key[:_SHORT], "damaged", format_bytes(e.size), _ago(e.used), "", "", ""))
            continue
        meta = e.header.meta
        read = terminal.count(meta.seen) + ("" if meta.complete else f" of {terminal.count(meta.tokens)}")
        named = meta.files[0] + (f" and {len(meta.files) - 1} more" if meta.files[1:] else "") if meta.files else "?"
        recipe = terminal.short_recipe(meta.identity.recipe)
        rows.append((e.key[:_SHORT], read, format_bytes(e.size), _ago(e.used), recipe, named, meta.model))
    models = {row[-1] for row in rows} - {""}
    if rows:
        columns = ("id", "tokens", "size", "used", "recipe", "document", "model")
        shown = len(columns) - (len(models) == 1)  # one model is named below the table
        terminal.table(columns[:shown], [row[:shown] for row in rows])
    total = sum(e.size for e in entries)
    readings = terminal.plural(len(entries), "saved prefill") + (f" of {models.pop()}" if len(models) == 1 else "")
    terminal.note(
        "cache", f"{readings}, {format_bytes(total)} of at most {format_bytes(library.limit)} · {library.folder}"
    )
    if kept:
        text = f"{terminal.plural(len(kept), 'extracted text')}, {format_bytes(sum(e.size for e in kept))}"
        terminal.note("texts", f"{text} · {_texts().folder}")


@app.command("show", cls=Command)
def show(name: One, as_json: JSON = False, _debug: DEBUG = False) -> None:
    """Describe one saved prefill."""
    entry = _entry(name)
    if entry.header is None:
        raise _damaged(entry)
    if as_json:
        terminal.print_json(reading=facts(entry))
        return
    meta, own = entry.header.meta, entry.header.meta.identity
    read = terminal.count(meta.seen) + ("" if meta.complete else f" of {terminal.count(meta.tokens)} (interrupted)")
    rows = {
        "id": entry.id,
        "document": " ".join(meta.files),
        "tokens": read,
        "kept": f"{terminal.count(meta.kept)} KV pairs per head",
        "continues": f"from token {terminal.count(meta.edge)}" if meta.edge else "from the start",
        "model": f"{meta.model} (fingerprint {own.model})",
        "dtype": own.dtype,
        "recipe": meta.recipe or own.recipe,
        "heads": own.heads,
        "chunk": f"{own.chunk} tokens",
        "system": meta.system,
        "raw": "yes" if meta.raw else None,
        "question": "serves one question only" if own.question else None,
        "size": f"{format_bytes(entry.size)} ({terminal.count(entry.size)} bytes)",
        "made": f"{meta.made} by {meta.program} on {meta.device}, kvcli {meta.origin}",
        "used": _ago(entry.used),
        "path": str(entry.path),
    }
    terminal.facts(((label, value) for label, value in rows.items() if value), 12)


@app.command("rm", cls=Command)
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="ID", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all.")] = False,
    as_json: JSON = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Delete saved prefills, and the extracted texts of their documents."""
    library = CacheDirectory.default()
    if bool(names) == everything:
        raise UsageError("give an ID or --all, not both or neither", "kvcli cache ls")
    entries = library.entries() if everything else [library.find(name) for name in names or ()]
    names_of = {name for e in entries if e.header is not None for name in e.header.meta.files}
    with _deleting(library):
        for entry in entries:
            library.remove(entry)
        texts = _texts().remove(None if everything else names_of)
    _deleted(entries, texts, as_json=as_json, quiet=quiet)


@app.command("prune", cls=Command)
def prune(
    limit: Annotated[str | None, annotation("--limit SIZE", "Shrink the cache to this size: 5GiB.")] = None,
    days: Annotated[
        float | None,
        annotation("--unused DAYS", "Delete entries that were not used for so many days.", min=0),
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Delete damaged entries, and the least recently used over the limit."""
    library = CacheDirectory.default()
    size, older = None if limit is None else parse_size(limit, "--limit"), None if days is None else days * 86400
    with _deleting(library):
        gone = library.prune(size, older=older)
        texts = _texts().prune(size, older=older)
    _deleted(gone, texts, as_json=as_json, quiet=quiet)


@app.command("verify", cls=Command)
def verify(names: Some = None, as_json: JSON = False, quiet: QUIET = False, _debug: DEBUG = False) -> None:
    """Check the checksums of saved prefills.

    Exits with 7 if one is damaged.
    """
    entries = [_entry(name) for name in names] if names else CacheDirectory.default().entries()
    bad = []
    for entry in entries:
        fault = entry.fault
        if entry.header is not None:
            try:
                file_format.verify(entry.header)
            except DamagedError as error:
                fault = error.message
        if fault:
            bad.append(entry)
        if not as_json and (fault or not quiet):
            terminal.write(sys.stdout, terminal.oneline(f"{_name(entry)}  {fault or 'ok'}"))
    if bad:
        own = [_name(e) for e in bad if _own(e)]
        raise DamagedError(
            f"{len(bad)} of {terminal.plural(len(entries), 'saved prefill')} damaged",
            f"kvcli cache rm {' '.join(own)}" if own else _AGAIN,
        )
    if as_json:
        terminal.print_json(verified=[e.key for e in entries])


@app.command("export", cls=Command)
def export(
    name: One,
    target: Annotated[str, typer.Argument(metavar="FILE", help="Portable file to write: book.kv.")],
    quiet: QUIET = False,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """Copy a saved prefill to a portable file."""
    entry, path = _entry(name), check_export_path(target)
    _copy(_whole(entry).path, path)
    if as_json:
        terminal.print_json(reading=facts(CacheEntry.of(path)))
        return
    terminal.note("exported", f'{format_bytes(entry.size)} · kvcli ask {path} "…"', quiet=quiet)


@app.command("import", cls=Command)
def import_(
    names: Annotated[list[str], typer.Argument(metavar="FILE")],
    quiet: QUIET = False,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """Import portable files into the cache."""
    library, made = CacheDirectory.default(), []
    for name in names:
        found = _whole(_entry(name, only_file=True))
        place = library.path(found.meta.identity)
        if found.size > library.limit:
            raise ResourceError(
                f"{name} takes {format_bytes(found.size)}, and the limit of the cache is {format_bytes(library.limit)}",
                "KVCLI_CACHE_LIMIT=50GiB",
            )
        with library.lock(place) as mine:
            if not mine:
                raise ResourceError(
                    f"another kvcli process is using the saved prefill of {name}", "run the same command again later"
                )
            library.prune(library.limit - found.size, exclude=place.name.removesuffix(file_format.SUFFIX))
            _copy(found.path, place)
        made.append(place)
        if not as_json:
            terminal.note("imported", f"{name} as {place.stem[:_SHORT]}", quiet=quiet)
    if as_json:
        terminal.print_json(readings=[facts(CacheEntry.of(p)) for p in made])


@app.command("path", cls=Command)
def path(as_json: JSON = False, _debug: DEBUG = False) -> None:
    """Print the folder of saved prefills."""
    folder = CacheDirectory.default().folder
    if as_json:
        terminal.print_json(path=str(folder))
    else:
        terminal.write(sys.stdout, str(folder))


def facts(entry: CacheEntry) -> dict[str, Any]:
    """JSON that describes a saved prefill, or its damage."""
    common = {"id": entry.id, "path": str(entry.path), "bytes": entry.size, "used": round(entry.used, 3)}
    if entry.header is None:
        return {**common, "fault": entry.fault}
    meta = entry.header.meta
    return {**common, "complete": meta.complete, **asdict(meta)}


def _entry(name: str, *, only_file: bool = False) -> CacheEntry:
    """A saved prefill by its file or its id."""
    path = Path(name)
    if path.is_file():
        return CacheEntry.of(path)
    if only_file or "/" in name or "." in name:
        raise InputError(f"{name} does not exist", "ls *.kv")
    return CacheDirectory.default().find(name)


def _own(entry: CacheEntry) -> bool:
    """Whether it is in the cache directory, not a file that was named."""
    return entry.path.parent == CacheDirectory.default().folder


def _name(entry: CacheEntry) -> str:
    return entry.key[:_SHORT] if _own(entry) else str(entry.path)


def _damaged(entry: CacheEntry) -> DamagedError:
    return DamagedError(
        entry.fault or f"{entry.path} is damaged", f"kvcli cache rm {_name(entry)}" if _own(entry) else _AGAIN
    )


def _whole(entry: CacheEntry) -> file_format.CacheHeader:
    if entry.header is None:
        raise _damaged(entry)
    file_format.verify(entry.header)
    return entry.header


def _copy(source: Path, target: Path) -> None:
    try:
        file_format.copy(source, target)
    except OSError as error:
        hint = "kvcli cache prune" if error.errno == errno.ENOSPC else f"ls -ld {target.parent}"
        raise ResourceError(f"cannot write {target}: {error.strerror}", hint) from None


@contextmanager
def _deleting(library: CacheDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot delete {error.filename}: {error.strerror}", f"ls -ld {library.folder}") from None


def _deleted(gone: list[CacheEntry], texts: list[KeptText], *, as_json: bool, quiet: bool) -> None:
    total = sum(e.size for e in gone) + sum(e.size for e in texts)
    if as_json:
        terminal.print_json(deleted=[e.key for e in gone], bytes=total, texts=[e.name for e in texts])
        return
    count = terminal.plural(len(gone), "saved prefill")
    count += f" and {terminal.plural(len(texts), 'extracted text')}" if texts else ""
    terminal.note("deleted", f"{count}, {format_bytes(total)}", quiet=quiet)


def _texts() -> DocumentCache:
    return DocumentCache.default() or DocumentCache(CacheDirectory.default().folder / "texts")


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{terminal.plural(int(seconds // length), unit)} ago"
    return "just now"
