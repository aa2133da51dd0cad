"""``kvcli prefill FILE…``: process now, ask later."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.cli.commands.cache import facts
from kvcli.cli.option_groups import MAIN, option, takes_groups
from kvcli.cli.options import (
    FILES,
    EngineOptions,
    OutputOptions,
    PictureOptions,
    ReadOptions,
    RunOptions,
    as_json,
)
from kvcli.cli.output import check_export_path
from kvcli.cli.report import reading
from kvcli.cli.request import Request
from kvcli.cli.resident import kept
from kvcli.cli.setup import OpenRun, banner, open_request, prefill_with_progress
from kvcli.cli.views import terminal
from kvcli.errors import ResourceError, UsageError
from kvcli.prompt_cache.directory import CacheEntry
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.pipeline import DocumentContext


@dataclass(frozen=True)
class PrefillOutput(OutputOptions):
    """Where the prefill goes."""

    output: str | None = option("-o, --output FILE", "Write a portable file too: book.kv.", None, MAIN)
    as_json: bool = as_json()


@takes_groups
def command(
    files: FILES = None,
    *,
    read: ReadOptions,
    pictures: PictureOptions,
    engine: EngineOptions,
    output: PrefillOutput,
) -> None:
    """Process documents now, so that later questions start at once.

    kvcli ask with the same files uses the saved prefill. With -o it is also written as one portable file, which
    replaces the document: kvcli ask book.kv "…". A saved prefill as the first FILE is continued with the others.
    Prints the path of the saved prefill.
    """
    kept.refuse(engine.no_server)
    out = None if output.output is None else check_export_path(output.output)
    if read.cache.no_cache and out is None:
        raise UsageError("--no-cache without -o would save nothing", "-o book.kv")
    options = RunOptions.of(read, pictures, output)
    named = options.check()
    if named is not None and named.policy.query_aware:
        raise UsageError(f"'{named}' scores for one question, and prefill has none", "--policy keydiff")
    run = open_request(options, Request(tuple(files or ()), (), False), questions=0, required="kvcli prefill FILE")
    banner(run)
    context = prefill_with_progress(run, origin="prefill", path=None if options.cache else out)
    path = _keep(run, context, out)
    if options.verbose:
        terminal.note("read", reading(context), quiet=options.quiet)
    if out is not None:
        terminal.note(
            "saved", f'{format_bytes(out.stat().st_size)} · kvcli ask {shlex.quote(str(out))} "…"', quiet=options.quiet
        )
    if output.as_json:
        body = {**facts(CacheEntry.of(path)), "cache": context.cache, "prefill_s": round(context.prefill_s, 4)}
        terminal.print_json(reading=body, warnings=run.warnings)
    else:
        print(path)


def _keep(run: OpenRun, context: DocumentContext, out: Path | None) -> Path:
    """Mark the saved prefill as made by ``prefill``, copy it to ``out``, and return the file."""
    from kvcli.prompt_cache import file_format

    path = context.path
    try:
        if path is None:
            raise ResourceError("the document was processed, but the prefill could not be saved", "kvcli cache prune")
        header = file_format.header(path)
        own = run.pipeline.cache is not None and path.parent == run.pipeline.cache.folder
        if header.meta.origin != "prefill" and own:
            file_format.update_metadata(header, replace(header.meta, origin="prefill"))
        if out is not None and path != out:
            file_format.copy(path, out)
            return out
    except OSError as error:
        raise ResourceError(f"cannot write {out or path}: {error.strerror}", "-o another/folder/book.kv") from None
    return path
