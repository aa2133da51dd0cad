"""``kvcli kv FILE…``: which parts of a document are kept in the KV cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    FILES,
    OutputOptions,
    ReadOptions,
    RunOptions,
    as_json,
)
from kvcli.cli.report import reading
from kvcli.cli.request import Request, require_utf8
from kvcli.cli.setup import OpenRun, banner, open_request, prefill_with_progress
from kvcli.cli.views import citations, plot, sparkline, terminal
from kvcli.errors import InputError

if TYPE_CHECKING:
    from kvcli.cli.views.retention import PageRetention
    from kvcli.documents import Document
    from kvcli.pipeline import DocumentContext

FINE = 240
"""Columns of the map in a plot and in JSON; a terminal shows ``sparkline.WIDTH``."""

BEST = 10
"""Pages that the terminal lists."""


@dataclass(frozen=True)
class KeptMapOptions(OptionGroup):
    """Options of the picture."""

    PANEL: ClassVar[str] = "Map"

    plot: str | None = option("--plot FILE", "Save a plot as .png, .svg or .pdf; needs kvcli[plot].", None, MAIN)
    question: str | None = option("-e, --question TEXT", "Question, if the recipe scores for one.", None, MAIN)
    as_json: bool = as_json()


@takes_groups
def command(
    files: FILES = None,
    *,
    drawn: KeptMapOptions,
    read: ReadOptions,
    output: OutputOptions,
) -> None:
    """Show which parts of a document stayed in the KV cache.

    Prints a map of layers by position, and the pages of which most was kept. FILE may also be a saved prefill
    (book.kv). Without one the document is processed first.
    """
    out = None if drawn.plot is None else Path(drawn.plot)
    if out is not None:
        plot.check(out)
    options = RunOptions.of(read, output)
    asked = None if drawn.question is None else require_utf8(drawn.question, "the question")
    request = Request(tuple(files or ()), (), False)
    run = open_request(options, request, questions=0 if asked is None else 1, required="kvcli kv FILE")
    if run.recipe.policy.query_aware and asked is None:
        raise InputError(f"'{run.recipe}' scores for one question, and there is none", '-e "QUESTION"')
    banner(run)
    _show(run, prefill_with_progress(run, question=asked), out, as_json=drawn.as_json)


def _show(run: OpenRun, read: DocumentContext, out: Path | None, *, as_json: bool) -> None:
    from kvcli.cache.retention import equal_bins, retention_map
    from kvcli.cli.views.retention import page_retention

    context, document, tokens = read.context, run.document, read.tokens
    assert context is not None
    assert document is not None
    spec, facts = run.model.spec, reading(read)
    found = page_retention(context, document, run.pipeline.prompt.offsets(document.text), tokens, spec.sliding)
    fine = equal_bins(tokens, FINE)
    if out is not None:
        title = f"{terminal.title(document)} · {spec.name} · {facts}\n{read.recipe}"
        plot.draw(out, retention_map(context, fine), found, tokens, title)
    if as_json:
        _print_json(run, read, fine, retention_map(context, fine), found)
    else:
        _print(document, retention_map(context, equal_bins(tokens, sparkline.WIDTH)), found)
    terminal.note("read", facts, quiet=run.options.quiet)
    if out is not None:
        terminal.note("plot", str(out), quiet=run.options.quiet)


def _print(document: Document, rows: list[list[float]], found: Sequence[PageRetention]) -> None:
    """Print the map, and the pages of which most is kept."""
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
    terminal.table(("most kept", "kept", "tokens"), table)


def _print_json(
    run: OpenRun,
    read: DocumentContext,
    edges: list[int],
    rows: list[list[float]],
    found: Sequence[PageRetention],
) -> None:
    assert read.context is not None
    terminal.print_json(
        map={
            "recipe": str(read.recipe),
            "tokens": read.tokens,
            "kept": read.context.kept,
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
        warnings=run.warnings,
    )
