"""``kvcli kv FILE…``: where in a document the kept units lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    NO_CACHE,
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
from kvcli.cli.report import Report
from kvcli.cli.request import Request, require_utf8, standard_input
from kvcli.cli.setup import OpenRun, banner, open_model, open_run, prefill_with_progress
from kvcli.cli.signals import interruptible
from kvcli.cli.views import citations, plot, sparkline, terminal
from kvcli.errors import InputError
from kvcli.planning.budget import Budget

if TYPE_CHECKING:
    from kvcli.cli.views.retention import PageRetention
    from kvcli.documents import Document
    from kvcli.pipeline import DocumentContext

FINE = 240
"""Stretches of a picture and of JSON; a terminal has as many as a row has letters."""

BEST = 10
"""Pages that are named on the terminal."""


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="What was read, or is to be; - is standard input.", show_default=False),
    ] = None,
    picture: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw it: out.png, .svg or .pdf; needs kvcli[plot].")
    ] = None,
    question: Annotated[
        str | None, typer.Option("-e", "--question", metavar="TEXT", help="For policies that read for one question.")
    ] = None,
    model: MODEL = None,
    system: SYSTEM = None,
    raw: Annotated[bool, typer.Option("-r", "--raw", help="No chat template.")] = False,
    policy: POLICY = None,
    budget: BUDGET = None,
    kv_bits: KV_BITS = None,
    heads: HEADS = None,
    chunk: CHUNK = None,
    no_cache: NO_CACHE = False,
    rebuild: REBUILD = False,
    ranges: PAGES = None,
    include: INCLUDE = None,
    exclude: EXCLUDE = None,
    ocr: OCR = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    weights: WEIGHTS = "bf16",
    offline: OFFLINE = False,
    as_json: JSON = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    _debug: DEBUG = False,
) -> None:
    """Show where in a document the kept units lie: layers by position, and how much of each page.

    Takes a saved reading up, or reads. FILE may also be a reading of ``kvcli prefill -o book.kv``.
    """
    out = None if picture is None else Path(picture)
    if out is not None:
        plot.check(out)
    options = RunOptions(
        model=model,
        system=None if system is None else require_utf8(system, "the system message"),
        raw=raw,
        policy=policy,
        budget=None if budget is None else Budget.parse(budget),
        kv_bits=kv_bits,
        heads=heads,
        chunk=chunk,
        cache=not no_cache,
        rebuild=rebuild,
        reading=reading_options(ranges, include, exclude, ocr),
        device=device,
        dtype=dtype,
        weights=weights,
        offline=offline,
        quiet=quiet,
        verbose=verbose,
    )
    asked = None if question is None else require_utf8(question, "the question")
    options.check()
    with interruptible("waiting for standard input"):
        stdin = standard_input(Request(tuple(files or ()), (), False), stdin_is_questions=False, quiet=quiet)
    inputs = open_documents(options, files or (), stdin)
    run = open_run(inputs, open_model(inputs.options, inputs.saved), questions=0 if asked is None else 1)
    if run.source is None:
        raise InputError("no document was given", "kvcli kv FILE")
    if run.recipe.policy.query_aware and asked is None:
        raise InputError(f"'{run.recipe}' keeps what one question asks for", '-e "QUESTION"')
    banner(run, len(run.source.ids), run.recipe)
    _show(run, prefill_with_progress(run, question=asked), out, as_json=as_json)


def _show(run: OpenRun, read: DocumentContext, out: Path | None, *, as_json: bool) -> None:
    from kvcli.cache.retention import equal_bins, retention_map
    from kvcli.cli.views.retention import page_retention

    context, document, tokens = read.context, run.document, read.tokens
    assert context is not None
    assert document is not None
    spec, report = run.model.spec, Report.of(run, read)
    found = page_retention(context, document, run.pipeline.prompt.offsets(document.text), tokens, spec.sliding)
    fine = equal_bins(tokens, FINE)
    if out is not None:
        title = f"{terminal.title(document)} · {spec.name} · {report.reading()}\n{report.recipe}"
        plot.draw(out, retention_map(context, fine), found, tokens, title)
    if as_json:
        print(json.dumps(_object(report, fine, retention_map(context, fine), found), ensure_ascii=False))
    else:
        _print(document, retention_map(context, equal_bins(tokens, sparkline.WIDTH)), found)
    terminal.note("read", report.reading(), quiet=run.options.quiet)
    if out is not None:
        terminal.note("picture", str(out), quiet=run.options.quiet)


def _print(document: Document, rows: list[list[float]], found: Sequence[PageRetention]) -> None:
    """The map and the pages of which most is kept, on stdout."""
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    lines = [f"{'all':>5} {sparkline.bars(mean)}"]
    lines += [f"{i:>5} {row}" for i, row in enumerate(sparkline.shades(rows))]
    lines.append(f"layer {sparkline.ends(document, len(mean))}")
    for line in lines:
        terminal.write(sys.stdout, line.rstrip())
    if len(found) < 2:
        return
    print()
    table = []
    for page in sorted(found, key=lambda p: -p.share)[:BEST]:
        place = citations.where(document, page.block.span, page.block.line, page.block.last)
        table.append((place, f"{page.share:.1%}", f"{page.end - page.start:,}"))
    terminal.table(("most is kept of", "kept", "tokens"), table)


def _object(
    report: Report, edges: list[int], rows: list[list[float]], found: Sequence[PageRetention]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "map": {
            "recipe": report.recipe,
            "tokens": report.tokens,
            "kept": report.kept,
            "edges": edges,
            "layers": [[round(share, 5) for share in row] for row in rows],
            "pages": [
                {
                    "source": p.block.span.file,
                    "page": p.block.span.page,
                    "label": p.block.span.label,
                    "section": p.block.span.section,
                    "line": p.block.line,
                    "char_start": p.block.start,
                    "char_end": p.block.end,
                    "token_start": p.start,
                    "token_end": p.end,
                    "share": round(p.share, 5),
                }
                for p in found
            ],
        },
        "warnings": list(report.warnings),
    }
