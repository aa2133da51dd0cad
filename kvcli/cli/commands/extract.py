"""``kvcli extract FILE…``: the extracted text and its quality."""

from __future__ import annotations

import sys
import time
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

from kvcli import documents
from kvcli.cli import inputs
from kvcli.cli.option_groups import option, takes_groups
from kvcli.cli.options import FILES, DocumentOptions, PlainOutput, RunOptions, as_json
from kvcli.cli.output import AnswerWriter
from kvcli.cli.views import terminal
from kvcli.documents import Document, pages, quality
from kvcli.documents.quality import PageQuality, Quality
from kvcli.errors import UsageError


@dataclass(frozen=True)
class ExtractOutput(PlainOutput):
    """Options of the output."""

    report: bool = option("--report", "Print a table of pages instead of the text.", False)
    output: str | None = option("-o, --output FILE", "Write the text to FILE.")
    as_json: bool = as_json()

    def __post_init__(self) -> None:
        if self.report and self.as_json:
            raise UsageError("--report and --json exclude each other", "leave out one of them")


@takes_groups
def command(files: FILES = None, *, document: DocumentOptions, printed: ExtractOutput) -> None:
    """Show the text that is extracted from documents.

    This is exactly the text that a model would get, with a report of its quality on stderr. FILE is a document or a
    saved prefill (book.kv). Loads no model.
    """
    options, quiet = RunOptions.of(document, quiet=printed.quiet), printed.quiet
    names = list(files or [])
    if not names:
        if sys.stdin.isatty():
            raise UsageError("no file was given", "kvcli extract book.pdf")
        names = [documents.STDIN]
    sink = AnswerWriter(printed.output, stream=False, as_json=printed.as_json, inputs=names)
    start = time.perf_counter()
    stdin = sys.stdin.buffer.read() if documents.STDIN in names else None
    _, text = inputs.read(names, lambda rest: inputs.read_documents(options, rest, stdin), options.reading)
    assert text is not None
    seconds = time.perf_counter() - start
    found = quality.measure(text)
    try:
        if printed.report:
            _table(found)
        else:  # AnswerWriter.end strips; in a pipe or a file this is the text to the character
            whole = terminal.to_json(**_object(text, found, seconds)) if printed.as_json else text.text
            shown = terminal.strip_control(whole) if terminal.is_terminal(sink.file) else whole
            sink.file.write(shown if shown.endswith("\n") else shown + "\n")
            sink.file.flush()
    finally:
        sink.close()
    _tell(text, found, seconds, quiet=quiet)


def _tell(document: Document, found: Quality, seconds: float, *, quiet: bool) -> None:
    """Print a summary of the quality to stderr."""
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
    """Warnings about text that may be missing or wrong."""
    if not found.doubtful:
        return list(document.warnings)
    if document.pages is None:
        return [*document.warnings, "many characters are control characters or unassigned; this may not be text"]
    doubt = "many characters could not be decoded (fonts without a map to Unicode); --ocr may read them"
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
