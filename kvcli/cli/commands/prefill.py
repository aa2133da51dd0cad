"""``kvcli prefill FILE…``: read now, ask later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcli.cli.commands.cache import facts
from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.inputs import open_documents
from kvcli.cli.options import (
    BUDGET,
    CHUNK,
    DEBUG,
    DEVICE,
    DTYPE,
    EXCLUDE,
    HEADS,
    INCLUDE,
    JSON,
    KV_BITS,
    MODEL,
    OCR,
    OFFLINE,
    PAGES,
    POLICY,
    QUIET,
    REBUILD,
    SYSTEM,
    VERBOSE,
    WEIGHTS,
    RunOptions,
    reading_options,
)
from kvcli.cli.output import check_export_path
from kvcli.cli.report import Report
from kvcli.cli.request import Request, require_utf8, standard_input
from kvcli.cli.setup import OpenRun, banner, open_model, open_run, prefill_with_progress
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.errors import InputError, ResourceError, UsageError

if TYPE_CHECKING:
    from kvcli.pipeline import DocumentContext
from kvcli.planning.budget import Budget


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="What to read; - is standard input.", show_default=False),
    ] = None,
    model: MODEL = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Also write the reading there: book.kv.")
    ] = None,
    system: SYSTEM = None,
    raw: Annotated[bool, typer.Option("-r", "--raw", help="No chat template.")] = False,
    policy: POLICY = None,
    budget: BUDGET = None,
    kv_bits: KV_BITS = None,
    heads: HEADS = None,
    chunk: CHUNK = None,
    ranges: PAGES = None,
    include: INCLUDE = None,
    exclude: EXCLUDE = None,
    ocr: OCR = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Write the file of -o and nothing else.")] = False,
    rebuild: REBUILD = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    weights: WEIGHTS = "bf16",
    offline: OFFLINE = False,
    as_json: JSON = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    _debug: DEBUG = False,
) -> None:
    """Read files now, so that ``kvcli ask`` with the same files answers at once.

    With -o the reading is also one portable file, to be asked in place of the document: kvcli ask book.kv "…".
    A saved reading as the first FILE is continued with the others. Prints where the reading is.
    """
    out = None if output is None else check_export_path(output)
    if no_cache and out is None:
        raise UsageError("with --no-cache and without -o nothing would be saved", "-o book.kv")
    options = RunOptions(
        model=model,
        system=None if system is None else require_utf8(system, "the system message"),
        raw=raw,
        policy=policy,
        budget=None if budget is None else Budget.parse(budget),
        kv_bits=kv_bits,
        heads=heads,
        chunk=chunk,
        reading=reading_options(ranges, include, exclude, ocr),
        cache=not no_cache,
        rebuild=rebuild,
        device=device,
        dtype=dtype,
        weights=weights,
        offline=offline,
        quiet=quiet,
        verbose=verbose,
    )
    if policy is not None:
        from kvcli.recipe import parse

        if parse(policy).policy.query_aware:
            raise UsageError(f"'{policy}' reads for one question, and prefill knows none", "--policy keydiff")
    options.check()
    with interruptible("waiting for standard input"):
        stdin = standard_input(Request(tuple(files or ()), (), False), stdin_is_questions=False, quiet=quiet)
    inputs = open_documents(options, files or (), stdin)
    run = open_run(inputs, open_model(inputs.options, inputs.saved), questions=0)
    if run.source is None:
        raise InputError("no document was given", "kvcli prefill FILE")
    banner(run, len(run.source.ids), run.recipe)
    context = prefill_with_progress(run, origin="prefill", path=None if options.cache else out)
    path = _keep(run, context, out)
    report = Report.of(run, context)
    terminal.note("read", report.reading(), quiet=quiet)
    if as_json:
        reading = {**facts(path), "cache": report.cache, "prefill_s": round(report.prefill_s, 4)}
        print(json.dumps({"schema": SCHEMA, "reading": reading, "warnings": list(report.warnings)}, ensure_ascii=False))
    else:
        print(path)


def _keep(run: OpenRun, context: DocumentContext, out: Path | None) -> Path:
    """Mark the saved prefill as one for any question, copy it to ``out``, and return its file."""
    from kvcli.prompt_cache import file_format

    path = context.path
    try:
        if path is None:
            raise ResourceError("the text was read and is not saved", "kvcli cache prune, then the same command again")
        header = file_format.header(path)
        own = run.pipeline.cache is not None and path.parent == run.pipeline.cache.folder
        if header.meta.origin != "prefill" and own:
            file_format.update_metadata(header, replace(header.meta, origin="prefill"))
        if out is not None and path != out:
            file_format.copy(path, out)
            return out
    except OSError as error:
        raise ResourceError(f"{out or path} cannot be written: {error.strerror}", "another name for -o") from None
    return path
