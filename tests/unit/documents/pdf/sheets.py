"""PDFs with fonts, fields, annotations and attachments of any kind, from content streams written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from kvcli.documents import Document, Options, read
from kvcli.documents.pdf.pdfium import pieces
from tests.unit.documents.makers import _file, _stream

PROSE = (
    "The old man sat by the harbour and mended",
    "his nets until the light was gone, and then",
    "he walked home along the sea wall. He said",
    "that no ship had come in for seven weeks,",
    "and that none was expected before winter.",
    "In the town the bakers had no flour left and",
    "the children were sent out to gather mussels",
    "at low tide. Nobody spoke about the war. The",
    "mayor kept the church bell silent on Sundays",
    "so that it would not be heard from the sea.",
)


def shown(text: str, x: float, y: float, size: float = 11, font: str = "F") -> str:
    """Text at a place, ``y`` from the bottom of the page."""
    code = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    return f"BT /{font} {size} Tf 1 0 0 1 {x} {y} Tm ({code}) Tj ET\n"


def glyphs(text: str, x: float, y: float, size: float = 11, font: str = "U") -> str:
    """The same with a font of two bytes a glyph; a number of a glyph is the place of its letter in ``LETTERS``."""
    return f"BT /{font} {size} Tf 1 0 0 1 {x} {y} Tm <{''.join(f'{LETTERS.index(c):04X}' for c in text)}> Tj ET\n"


LETTERS = (
    "\0 𝑥🐈abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:()-אבגדהוזחטיכלמםנןךסעפףצץקרשת\u0301ﬁ駅東京"
)
"""Glyphs of the font ``U``, which has a map to Unicode, and of ``N``, which has none."""

EXPANDED = {"ﬁ": "fi"}


def sheets(
    contents: Sequence[str],
    *,
    page: str = "",
    catalog: str = "",
    resources: str = "",
    objects: Mapping[int, bytes] | None = None,
) -> bytes:
    """A PDF with a page for each content stream; ``page``, ``catalog``, ``resources`` are more entries of dictionaries.

    Objects of one's own begin at 1000. Fonts: ``F`` (Helvetica), ``U`` and ``N`` (see ``LETTERS``), ``T``, a Type 3
    font that says its letters only by the names of its glyphs.
    """
    rows = "\n".join(f"<{i:04X}> <{EXPANDED.get(c, c).encode('utf-16-be').hex()}>" for i, c in enumerate(LETTERS) if i)
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def "
        "1 begincodespacerange <0000> <FFFF> endcodespacerange "
        f"{len(LETTERS) - 1} beginbfchar\n{rows}\nendbfchar endcmap end end"
    )
    composite = "<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [11 0 R] {} >>"
    names = "/H /e /l /o /two"
    boxes = " ".join(f"{n} 15 0 R" for n in names.split())
    found: dict[int, bytes] = {
        1: f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        2: f"<< /Type /Pages /Kids [{' '.join(f'{20 + 2 * i} 0 R' for i in range(len(contents)))}] "
        f"/Count {len(contents)} >>".encode(),
        10: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        11: b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /FontDescriptor 14 0 R /DW 500 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>",
        12: composite.format("/ToUnicode 13 0 R").encode(),
        13: _stream(b"", cmap.encode()),
        14: b"<< /Type /FontDescriptor /FontName /X /Flags 4 /FontBBox [0 -200 1000 800] /Ascent 800 /Descent -200 "
        b"/CapHeight 700 /ItalicAngle 0 /StemV 80 >>",
        15: _stream(b"", b"500 0 0 0 500 700 d1 0 0 400 700 re f"),
        16: composite.format("").encode(),
        17: f"<< /Type /Font /Subtype /Type3 /Name /T /FontBBox [0 0 500 700] /FontMatrix [0.001 0 0 0.001 0 0] "
        f"/CharProcs << {boxes} >> /Encoding << /Differences [200 {names}] >> /FirstChar 200 /LastChar 204 "
        f"/Widths [500 500 500 500 500] >>".encode(),
        **(objects or {}),
    }
    for i, content in enumerate(contents):
        found[20 + 2 * i] = (
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F 10 0 R /U 12 0 R "
            f"/N 16 0 R /T 17 0 R >> {resources} >> /Contents {21 + 2 * i} 0 R {page} >>"
        ).encode()
        found[21 + 2 * i] = _stream(b"", content.encode("latin-1"))
    return _file(found, None)


def load(folder: Path, data: bytes, **options: object) -> Document:
    """What is read of a PDF; PDFium runs in this process, which is faster than a process of its own."""
    (folder / "sheets.pdf").write_bytes(data)
    with mock.patch("kvcli.documents.pdf.run", lambda _module, source, ranges: pieces(source.data, json.loads(ranges))):
        return read([folder / "sheets.pdf"], None, Options(**options))  # type: ignore[arg-type]


def body(document: Document) -> str:
    """The text without kvcli's marks of pages."""
    return "\n".join(document.text[s.body : s.end].strip("\n") for s in document.spans)
