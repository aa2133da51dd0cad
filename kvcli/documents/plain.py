"""Text, source, CSV, JSON and Markdown: the file as it is; Markdown's headings and a source's lines are its map."""

import re

from kvcli.documents.document import Extract, Part, Source
from kvcli.documents.text import decode
from kvcli.errors import InputError

MARKDOWN = (".md", ".markdown", ".mdown", ".mkd", ".rst.md", ".qmd", ".rmd")

_FENCE = re.compile(r" {0,3}(`{3,}+|~{3,}+)")
_ATX = re.compile(r" {0,3}(#{1,6})(?![^ \t])")
_SETEXT = re.compile(r" {0,3}(=++|-{2,}+)[ \t]*+$")


def extract(source: Source) -> Extract:
    """The text, unchanged but for its line ends. Raises ``InputError`` for binary data and for nothing but space."""
    text, warnings = decode(source.data, source.name, source.quoted)
    if not text.strip():
        raise InputError(
            f"{source.name} has no text: its {len(source.data):,} bytes are white space",
            'a scanned document needs OCR: kvcli ask --ocr scan.pdf "…"',
        )
    if source.name.lower().endswith(MARKDOWN) or source.suffix in MARKDOWN:
        return Extract(sections(text), warnings=warnings)
    return Extract([Part(text)], warnings=warnings)


def sections(text: str) -> list[Part]:
    """Markdown cut at its headings; not at the ``#`` of a fenced block."""
    parts: list[Part] = []
    path: list[tuple[int, str]] = []
    fence = ""
    lines = text.split("\n")
    starts: list[tuple[int, str | None]] = [(0, None)]  # first line and section
    for i, line in enumerate(lines):
        if fence:
            closing = _FENCE.match(line)
            if closing and closing[1].startswith(fence) and not line[closing.end() :].strip():
                fence = ""
            continue
        if match := _FENCE.match(line):
            fence = match[1]
            continue
        heading = _heading(lines, i)
        if heading is None:
            continue
        path = [*(p for p in path if p[0] < heading[0]), heading]
        section = " › ".join(t for _, t in path if t) or None
        if starts[-1][0] == i:
            starts.pop()
        starts.append((i, section))
    ends = [start for start, _ in starts[1:]] + [len(lines)]
    for (first, section), end in zip(starts, ends, strict=True):
        body = "\n".join(lines[first:end]) + ("\n" if end < len(lines) else "")
        parts.append(Part(body, section=section, line=first + 1))
    return parts


def _heading(lines: list[str], i: int) -> tuple[int, str] | None:
    if match := _ATX.match(lines[i]):
        title = lines[i][match.end() :].strip(" \t")
        if (shorter := title.rstrip("#")) == "" or shorter[-1] in " \t":
            title = shorter.rstrip(" \t")
        return len(match[1]), title[:200]
    below = _SETEXT.match(lines[i + 1]) if i + 1 < len(lines) else None
    before = lines[i - 1].strip() if i else ""
    if below and lines[i].strip() and not before and not lines[i].lstrip().startswith(("-", "*", ">", "|", "`")):
        return 1 if below[1][0] == "=" else 2, lines[i].strip()[:200]
    return None
