"""``kvcli prefill FILE…``: read now, ask later."""

import json
from typing import Annotated

import typer

from kvcli.cli.budget import Budget
from kvcli.cli.commands.cache import facts
from kvcli.cli.desk import Desk, Settings
from kvcli.cli.exit_codes import SCHEMA
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
    options,
)
from kvcli.cli.output import check_export_path
from kvcli.cli.request import Request, require_utf8
from kvcli.cli.views import terminal
from kvcli.errors import InputError, UsageError


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
    settings = Settings(
        model=model,
        system=None if system is None else require_utf8(system, "the system message"),
        raw=raw,
        policy=policy,
        budget=None if budget is None else Budget.parse(budget),
        kv_bits=kv_bits,
        heads=heads,
        chunk=chunk,
        reading=options(ranges, include, exclude, ocr),
        cache=not no_cache,
        rebuild=rebuild,
        device=device,
        dtype=dtype,
        weights=weights,
        offline=offline,
        quiet=quiet,
        verbose=verbose,
    )
    desk = Desk(settings, Request(tuple(files or ()), (), False))
    if policy is not None:
        from kvcli.recipe import parse

        if parse(policy).policy.query_aware:
            raise UsageError(f"'{policy}' reads for one question, and prefill knows none", "--policy keydiff")
    desk.prepare()
    if not desk.ids:
        raise InputError("no document was given", "kvcli prefill FILE")
    desk.banner()
    desk.prefill(out)
    path = desk.reader.path
    assert path is not None
    report = desk.report
    terminal.note("read", report.reading(), quiet=quiet)
    if as_json:
        reading = {**facts(path), "cache": report.cache, "prefill_s": round(report.prefill_s, 4)}
        print(json.dumps({"schema": SCHEMA, "reading": reading, "warnings": report.warnings}, ensure_ascii=False))
    else:
        print(path)
