"""``kvcli extract FILE…``: exactly the text that a model would read, and how good it is."""

import json
import sys
import time
import unicodedata
from dataclasses import asdict
from typing import Annotated, Any

import typer

from kvcli import documents
from kvcli.cli import inputs
from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.options import DEBUG, EXCLUDE, INCLUDE, OCR, PAGES, QUIET, reading_options
from kvcli.cli.output import AnswerWriter
from kvcli.cli.views import terminal
from kvcli.documents import Document, pages, quality
from kvcli.documents.quality import PageQuality, Quality
from kvcli.errors import UsageError


def command(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE...", show_default=False)] = None,
    ranges: PAGES = None,
    include: INCLUDE = None,
    exclude: EXCLUDE = None,
    ocr: OCR = False,
    report: Annotated[bool, typer.Option("--report", help="A table of pages instead of the text.")] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Write the text there, not to stdout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: text, spans and quality.")] = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Show exactly what a model would read of FILE, page by page, and how good it is. Loads no model.

    FILE is a PDF, EPUB, DOCX, HTML, Markdown, text or source file, a directory of them, or - for standard input;
    of a saved reading (book.kv) it shows what was read.
    """
    if report and as_json:
        raise UsageError("--report and --json are two ways to print the same", "leave out one of them")
    chosen = reading_options(ranges, include, exclude, ocr)
    names = list(files or [])
    if not names:
        if sys.stdin.isatty():
            raise UsageError("no file was given", "kvcli extract book.pdf")
        names = [documents.STDIN]
    sink = AnswerWriter(output, stream=False, as_json=as_json, inputs=names)
    start = time.perf_counter()
    stdin = sys.stdin.buffer.read() if documents.STDIN in names else None
    _, document = inputs.read(names, lambda rest: documents.read(rest, stdin, chosen), chosen)
    assert document is not None
    seconds = time.perf_counter() - start
    found = quality.measure(document)
    try:
        if report:
            _table(found)
        else:
            # Not through Sink.end, which strips: in a pipe or a file this is the text to the character.
            whole = json.dumps(_object(document, found, seconds), ensure_ascii=False) if as_json else document.text
            shown = terminal.strip_control(whole) if terminal.is_terminal(sink.file) else whole
            sink.file.write(shown if shown.endswith("\n") else shown + "\n")
            sink.file.flush()
    finally:
        sink.close()
    _tell(document, found, seconds, quiet=quiet)


def _tell(document: Document, found: Quality, seconds: float, *, quiet: bool) -> None:
    """The report in short, on stderr."""
    size = f"{found.characters:,} characters in {seconds:.1f} s"
    terminal.note("document", f"{terminal.title(document)} · {size}", quiet=quiet)
    if document.pages:
        paged = [r for r in found.rows if r.page is not None]
        fewest = min(paged, key=lambda r: r.characters)
        few = f"fewest on page {fewest.page}: {fewest.characters:,}"
        terminal.note("pages", f"{found.typical:,} characters on the median page · {few}", quiet=quiet)
        for file in document.files:
            if empty := [r.page for r in found.empty if r.file == file and r.page is not None]:
                terminal.note("empty", f"{file}: {pages.named(empty)}", quiet=quiet)
    if found.odd:
        total = sum(found.odd.values())
        signs = ", ".join(f"{_name(c)} ×{n:,}" for c, n in found.odd.most_common(5))
        terminal.note(
            "odd",
            f"{terminal.plural(total, 'glyph')} ({terminal.share(total, found.characters)}): {signs}",
            quiet=quiet,
        )
    for text in document.notes:
        terminal.note("note", text, quiet=quiet)
    for text in warnings(document, found):
        terminal.warn(text, quiet=quiet)


def warnings(document: Document, found: Quality) -> list[str]:
    """What may be missing or wrong."""
    if not found.doubtful:
        return list(document.warnings)
    if document.pages is None:
        return [*document.warnings, "many characters are control characters or unassigned; it may be no text"]
    doubt = "many letters could not be told (fonts without a map to Unicode); --ocr may read them better"
    return [*document.warnings, doubt]


def _name(c: str) -> str:
    return f"U+{ord(c):04X} {unicodedata.name(c, '').lower()}".strip()


def _table(found: Quality) -> None:
    def cells(row: PageQuality) -> tuple[str, ...]:
        page = str(row.page or "")
        return (
            page,
            row.label or "",
            f"{row.characters:,}",
            f"{row.words:,}",
            str(row.odd or ""),
            row.section or "",
            row.file,
        )

    several = len({r.file for r in found.rows}) > 1
    head = ("page", "label", "characters", "words", "odd", "section", "file")
    rows = [cells(r) for r in found.rows]
    terminal.table(head if several else head[:-1], rows if several else [r[:-1] for r in rows])


def _object(document: Document, found: Quality, seconds: float) -> dict[str, Any]:
    text = {k: v for k, v in asdict(document).items() if k not in ("without_text", "notes", "warnings")}
    return {
        "schema": SCHEMA,
        "document": text,
        "quality": {
            "characters": found.characters,
            "odd": dict(found.odd),
            "rows": [asdict(r) for r in found.rows],
            "without_text": [{"file": f, "page": p} for f, p in document.without_text],
        },
        "timing": {"extract_s": round(seconds, 4)},
        "notes": list(document.notes),
        "warnings": warnings(document, found),
    }
