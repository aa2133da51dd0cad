"""``kvcli library``: documents that are kept and asked about together, as ``kvcli ask @NAME``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kvcli.cli.exit_codes import PARTLY_FAILED
from kvcli.cli.help import Command, Group
from kvcli.cli.inputs import Inputs
from kvcli.cli.model_loading import LoadedModel, check, open_model
from kvcli.cli.option_groups import annotation, takes_groups
from kvcli.cli.options import (
    DEBUG,
    JSON,
    QUIET,
    DocumentOptions,
    ModelOptions,
    OutputOptions,
    PromptOptions,
    RecipeOptions,
    RunOptions,
)
from kvcli.cli.setup import open_run, prefill_with_progress
from kvcli.cli.signals import Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.corpus.library import Library, names
from kvcli.corpus.search_results import Entry
from kvcli.corpus.task import find_files
from kvcli.errors import InputError, KvcliError, UsageError
from kvcli.utils.files import sha256

app = typer.Typer(
    cls=Group, help="Keep documents together, to ask about all of them: kvcli ask @NAME.", no_args_is_help=True
)
NAME = Annotated[str, typer.Argument(metavar="NAME", help="Name of the library.", show_default=False)]


@app.command("add", cls=Command)
@takes_groups
def add(
    name: NAME,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Documents, folders or patterns.")],
    *,
    model: ModelOptions,
    document: DocumentOptions,
    recipe: RecipeOptions,
    prompt: PromptOptions,
    output: OutputOptions,
    no_prefill: Annotated[
        bool, annotation("--no-prefill", "Keep text and index only; the first question reads the file.", "Library")
    ] = False,
    embed: Annotated[
        str | None,
        annotation("--embed MODEL", "Embedding model on this machine; the ranking counts meaning too.", "Library"),
    ] = None,
) -> None:
    """Add documents to a library, or those of them that changed.

    Keeps the text with its pages, an index of the sentences, and a saved prefill of each file. Files that did not
    change are skipped. With --embed, each sentence gets a vector too, and questions are ranked by words and vectors.
    Later calls use the same model. A file that cannot be read is reported, the others are added; the exit code is 8.

    \b
    Example:
      kvcli library add papers *.pdf && kvcli ask @papers "Which of them measures energy?"
    """
    library, options = Library(name.removeprefix("@")), RunOptions.of(model, document, recipe, prompt, output)
    check(options)
    found, notes = find_files(files, options.reading)
    for note in notes:
        terminal.note("library", note, quiet=options.quiet)
    loaded: LoadedModel | None = None
    added = failed = 0
    with library.writing():
        with interruptible("loading the encoder"):
            encoder = library.encoder(embed)
        for n, file in enumerate(found, 1):
            try:
                with interruptible(f"adding {file}; {n - 1:,} of {len(found):,} files are in the library"):
                    entry, new = library.add(file, _digest(file), options.reading)
                if not no_prefill and (new or not _saved(entry)):
                    loaded = loaded or open_model(options)
                    terminal.note("file", f"[{n}/{len(found)}] {file}", quiet=options.quiet)
                    _read(library, entry, options, loaded)
                added += new
            except (Interrupted, BrokenPipeError):
                raise
            except Exception as problem:
                failed += 1
                terminal.error(KvcliError.of(problem))
        if encoder is not None:
            with interruptible("embedding the sentences; finished files are kept"):
                count = library.embed(encoder)
            said = f"{terminal.plural(count, 'file')} embedded by {encoder.name}"
            terminal.note("embed", said, quiet=options.quiet)
    same = len(found) - added - failed
    parts = [f"{terminal.plural(added, 'file')} added or changed", f"{same:,} unchanged"]
    parts.append(f"{len(library.entries):,} in {library.name}")
    terminal.note("library", " · ".join(parts), quiet=options.quiet)
    if failed:
        terminal.warn(f"{failed} of {terminal.plural(len(found), 'file')} failed")
        raise typer.Exit(PARTLY_FAILED)


@app.command("ls", cls=Command)
def ls(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the library.", show_default=False)] = None,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """List the libraries, or the files of one."""
    if name is not None:
        library = Library.find(name.removeprefix("@"))
        rows = [
            {**asdict(entry), "changed": entry.changed, "read": _saved(entry)} for entry in library.entries.values()
        ]
        encoder = None if library.embedder is None else library.embedder.name
        if as_json:
            terminal.print_json(library={"name": library.name, "encoder": encoder, "files": rows})
            return
        if encoder is not None:
            terminal.note("encoder", encoder)
        table = [
            (
                row["path"],
                "" if row["pages"] is None else f"{row['pages']:,}",
                f"{row['characters']:,}",
                "yes" if row["read"] else "no",
                "changed or gone" if row["changed"] else "",
            )
            for row in rows
        ]
        terminal.table(("file", "pages", "characters", "prefill", ""), table)
        return
    libraries = [Library(each) for each in names()]
    facts = [
        {
            "name": library.name,
            "files": len(library.entries),
            "characters": sum(entry.characters for entry in library.entries.values()),
            "encoder": None if library.embedder is None else library.embedder.name,
        }
        for library in libraries
    ]
    if as_json:
        terminal.print_json(libraries=facts)
    elif facts:
        cells = [
            (f"@{row['name']}", f"{row['files']:,}", f"{row['characters']:,}", str(row["encoder"] or ""))
            for row in facts
        ]
        terminal.table(("library", "files", "characters", "encoder"), cells)
    else:
        terminal.note("library", "none yet: kvcli library add papers *.pdf")


@app.command("rm", cls=Command)
def rm(
    name: NAME,
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Files; all if none is named.")] = None,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Remove files from a library, or the whole library. The files themselves and saved prefills stay."""
    library = Library.find(name.removeprefix("@"))
    with library.writing():
        count = library.remove(files or [])
    terminal.note("removed", f"{terminal.plural(count, 'file')} from {library.name}", quiet=quiet)


def _digest(file: str) -> str:
    path = Path(file)
    if path.exists() and not path.is_file():
        raise UsageError(f"{file} is not a file that can be kept", "save it to a file first")
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", f"ls -l {file}") from None


def _saved(entry: Entry) -> bool:
    """Whether the saved prefill of a file is still there."""
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.prompt_cache.file_format import SUFFIX

    return entry.reading is not None and (CacheDirectory.default().folder / f"{entry.reading}{SUFFIX}").exists()


def _read(library: Library, entry: Entry, options: RunOptions, loaded: LoadedModel) -> None:
    run = open_run(Inputs(options, library.document(entry), None, 0.0), loaded, questions=0)
    context = prefill_with_progress(run, origin="library")
    library.keep_reading(entry, None if context.path is None or context.key is None else context.key.key)
