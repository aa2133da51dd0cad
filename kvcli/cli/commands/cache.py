"""``kvcli cache``: the saved readings, looked at and looked after. Imports no torch."""

import errno
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.output import check_export_path
from kvcli.cli.views import terminal
from kvcli.errors import DamagedError, InputError, ResourceError, UsageError
from kvcli.prompt_cache import file_format
from kvcli.prompt_cache.directory import CacheDirectory, CacheEntry
from kvcli.utils.sizes import format_bytes, parse_size

app = typer.Typer(no_args_is_help=True, help="List, check and delete saved readings.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback for an error.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No notes.")]
One = Annotated[str, typer.Argument(metavar="ID|FILE", help="A reading by the beginning of its id, or a .kv file.")]
Some = Annotated[
    list[str] | None, typer.Argument(metavar="[ID|FILE]...", help="Readings; without any, all.", show_default=False)
]

_SHORT = 10  # digits of an id that are shown
_AGAIN = "make it again: kvcli prefill FILE -o book.kv"


@app.command("ls")
def ls(as_json: Json = False, _debug: Debug = False) -> None:
    """List saved readings, the last used first."""
    library = CacheDirectory.default()
    entries = library.entries()
    if as_json:
        _print("readings", [_facts(e) for e in entries], limit=library.limit, bytes=sum(e.size for e in entries))
        return
    rows = []
    for e in entries:
        if e.header is None:
            rows.append((e.key[:_SHORT], "damaged", "", "", format_bytes(e.size), _ago(e.used), ""))
            continue
        meta = e.header.meta
        read = terminal.count(meta.seen) + ("" if meta.complete else f" of {terminal.count(meta.tokens)}")
        named = meta.files[0] + (f" and {len(meta.files) - 1} more" if meta.files[1:] else "") if meta.files else "?"
        rows.append((e.key[:_SHORT], read, meta.model, meta.identity.recipe, format_bytes(e.size), _ago(e.used), named))
    if rows:
        terminal.table(("id", "tokens", "model", "recipe", "size", "used", "document"), rows)
    total = sum(e.size for e in entries)
    readings = terminal.plural(len(entries), "reading")
    terminal.note(
        "cache", f"{readings}, {format_bytes(total)} of at most {format_bytes(library.limit)} · {library.folder}"
    )


@app.command("show")
def show(name: One, as_json: Json = False, _debug: Debug = False) -> None:
    """Describe one reading: of what, by which model, how."""
    entry = _entry(name)
    if entry.header is None:
        raise _damaged(entry)
    if as_json:
        _print("reading", _facts(entry))
        return
    meta, own = entry.header.meta, entry.header.meta.identity
    read = terminal.count(meta.seen) + ("" if meta.complete else f" of {terminal.count(meta.tokens)}: a checkpoint")
    rows = {
        "id": entry.id,
        "document": " ".join(meta.files),
        "tokens": read,
        "kept": f"{terminal.count(meta.kept)} units",
        "continues": f"from token {terminal.count(meta.edge)}" if meta.edge else "from the start",
        "model": f"{meta.model} (fingerprint {own.model})",
        "dtype": own.dtype,
        "recipe": meta.recipe or own.recipe,
        "heads": own.heads,
        "chunk": f"{own.chunk} tokens",
        "system": meta.system,
        "raw": "yes" if meta.raw else None,
        "question": "reads for one question" if own.question else None,
        "size": f"{format_bytes(entry.size)} ({terminal.count(entry.size)} bytes)",
        "made": f"{meta.made} by {meta.program} on {meta.device}, kvcli {meta.origin}",
        "used": _ago(entry.used),
        "path": str(entry.path),
    }
    for label, value in rows.items():
        if value:
            print(f"{label:<12}{terminal.oneline(value)}")


@app.command("rm")
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all of them.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    _debug: Debug = False,
) -> None:
    """Delete saved readings."""
    library = CacheDirectory.default()
    if bool(names) == everything:
        raise UsageError("name readings, or --all", "kvcli cache ls")
    entries = library.entries() if everything else [library.find(name) for name in names or ()]
    for entry in entries:
        _delete(library, entry)
    _deleted(entries, as_json=as_json, quiet=quiet)


@app.command("prune")
def prune(
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="SIZE", help="Until the rest takes no more: 5GiB.")
    ] = None,
    days: Annotated[
        float | None, typer.Option("--unused", metavar="DAYS", min=0, help="Those not used for so many days.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    _debug: Debug = False,
) -> None:
    """Delete damaged readings, and the least recently used ones beyond the limit."""
    library = CacheDirectory.default()
    try:
        gone = library.prune(
            None if limit is None else parse_size(limit, "--limit"), older=None if days is None else days * 86400
        )
    except OSError as error:
        raise ResourceError(f"{error.filename} cannot be deleted: {error.strerror}", "ls -ld its folder") from None
    _deleted(gone, as_json=as_json, quiet=quiet)


@app.command("verify")
def verify(names: Some = None, as_json: Json = False, quiet: Quiet = False, _debug: Debug = False) -> None:
    """Read whole files and compare their digests. Exits with 7 where one is damaged."""
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
            print(terminal.oneline(f"{_name(entry)}  {fault or 'whole'}"))
    if bad:
        own = [_name(e) for e in bad if _own(e)]
        raise DamagedError(
            f"{len(bad)} of {terminal.plural(len(entries), 'reading')} damaged",
            f"kvcli cache rm {' '.join(own)}" if own else _AGAIN,
        )
    if as_json:
        _print("verified", [e.key for e in entries])


@app.command("export")
def export(
    name: One,
    target: Annotated[str, typer.Argument(metavar="FILE", help="Where to: book.kv.")],
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Copy one reading to a portable file."""
    entry, path = _entry(name), check_export_path(target)
    _copy(_whole(entry).path, path)
    if as_json:
        _print("reading", facts(path))
        return
    terminal.note("exported", f'{format_bytes(entry.size)} · kvcli ask {path} "…"', quiet=quiet)


@app.command("import")
def import_(
    names: Annotated[list[str], typer.Argument(metavar="FILE...")],
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Take portable files over, so that their documents need not be read here."""
    library, made = CacheDirectory.default(), []
    for name in names:
        found = _whole(_entry(name, only_file=True))
        place = library.place(found.meta.identity)
        if found.size > library.limit:
            raise ResourceError(
                f"{name} takes {format_bytes(found.size)}, and all readings together may take"
                f" {format_bytes(library.limit)}",
                "KVCLI_CACHE_LIMIT=50GiB",
            )
        with library.lock(place) as mine:
            if not mine:
                raise ResourceError(f"another kvcli is reading what {name} is of", "the same command again, later")
            library.prune(library.limit - found.size, exclude=place.name.removesuffix(file_format.SUFFIX))
            _copy(found.path, place)
        made.append(place)
        if not as_json:
            terminal.note("imported", f"{name} as {place.stem[:_SHORT]}", quiet=quiet)
    if as_json:
        _print("readings", [facts(p) for p in made])


@app.command("path")
def path(as_json: Json = False, _debug: Debug = False) -> None:
    """Print the folder of saved readings."""
    folder = CacheDirectory.default().folder
    if as_json:
        _print("path", str(folder))
    else:
        print(folder)


def facts(path: Path) -> dict[str, Any]:
    """What is known of the reading in a file, as JSON; of a damaged one only that."""
    return _facts(CacheEntry.of(path))


def _facts(entry: CacheEntry) -> dict[str, Any]:
    common = {"id": entry.id, "path": str(entry.path), "bytes": entry.size, "used": round(entry.used, 3)}
    if entry.header is None:
        return {**common, "fault": entry.fault}
    meta = entry.header.meta
    return {**common, "complete": meta.complete, **asdict(meta)}


def _entry(name: str, *, only_file: bool = False) -> CacheEntry:
    """A reading by its file or by its id."""
    path = Path(name)
    if path.is_file():
        return CacheEntry.of(path)
    if only_file or "/" in name or "." in name:
        raise InputError(f"{name} does not exist", "ls *.kv")
    return CacheDirectory.default().find(name)


def _own(entry: CacheEntry) -> bool:
    """Whether it lies among the saved readings, and is no file that was named."""
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
        hint = "kvcli cache prune" if error.errno == errno.ENOSPC else "another name"
        raise ResourceError(f"{target} cannot be written: {error.strerror}", hint) from None


def _delete(library: CacheDirectory, entry: CacheEntry) -> None:
    try:
        library.remove(entry)
    except OSError as error:
        raise ResourceError(f"{entry.path} cannot be deleted: {error.strerror}", f"ls -ld {library.folder}") from None


def _deleted(gone: list[CacheEntry], *, as_json: bool, quiet: bool) -> None:
    total = sum(e.size for e in gone)
    if as_json:
        _print("deleted", [e.key for e in gone], bytes=total)
        return
    terminal.note("deleted", f"{terminal.plural(len(gone), 'reading')}, {format_bytes(total)}", quiet=quiet)


def _print(name: str, value: Any, **more: Any) -> None:
    print(json.dumps({"schema": SCHEMA, name: value, **more}, ensure_ascii=False))


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{terminal.plural(int(seconds // length), unit)} ago"
    return "just now"
