"""A copy of a PDF with quotes highlighted as notes, made by PDFium in a process of its own."""

import base64
import ctypes
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

from kvcli.documents.document import Source
from kvcli.documents.isolated import bounded, run
from kvcli.documents.pdf.fonts import Fonts
from kvcli.documents.pdf.picture import CHARACTERS, marked
from kvcli.documents.pdf.words import Boxes, Word, words
from kvcli.errors import InputError

COLOUR = (255, 226, 90)
FINE = 100
"""Steps per point in which PDFium, which takes whole numbers, converts places on a page."""


class Mark(NamedTuple):
    """Words to highlight on a page (from 1), and the note that a viewer shows with them."""

    page: int
    quote: str
    note: str = ""


def highlighted(source: Source, marks: Sequence[Mark]) -> tuple[bytes, int]:
    """A copy of a PDF with highlights, and how many of the ``marks`` were found on their pages.

    Raises:
        InputError: the copy cannot be made.
    """
    for found in run("kvcli.documents.pdf.highlight", source, json.dumps(marks), silence=120):
        return base64.b64decode(found["pdf"]), int(found["marked"])
    raise InputError(f"{source.name} cannot be copied with highlights", "--export answer.html")


def rows(found: Sequence[Word]) -> list[tuple[float, float, float, float]]:
    """Boxes of words, those of one upright line as one box."""
    boxes: list[tuple[float, float, float, float]] = []
    for word in found:
        x0, y0, x1, y1 = word[1:5]
        if boxes and not word.turns:
            a0, b0, a1, b1 = boxes[-1]
            if abs(b1 - y1) < 0.5 * (y1 - y0) and x0 > a0 and x0 - a1 < 2 * (y1 - y0):
                boxes[-1] = (a0, min(b0, y0), max(a1, x1), max(b1, y1))
                continue
        boxes.append((x0, y0, x1, y1))
    return boxes


def _highlight(data: bytes, marks: Sequence[Mark]) -> tuple[bytes, int]:
    import pypdfium2 as pdfium

    document, fonts, count = pdfium.PdfDocument(data), Fonts(data), 0
    by_page: dict[int, list[Mark]] = defaultdict(list)
    for mark in marks:
        by_page[mark.page].append(mark)
    for number, wanted in by_page.items():
        page = document[number - 1]
        text = page.get_textpage()
        letters = min(text.count_chars(), CHARACTERS)
        found = words(Boxes(page, text), text, letters, fonts.page(number)).words if letters > 0 else []
        for mark in wanted:
            if boxes := rows(marked(found, mark.quote)):
                _annotate(page, boxes, mark.note)
                count += 1
    copy = BytesIO()
    document.save(copy)
    return copy.getvalue(), count


def _annotate(page: Any, boxes: Sequence[tuple[float, float, float, float]], note: str) -> None:
    """Add one highlight over boxes of points from the top left of the page as it is shown."""
    from pypdfium2 import raw

    annotation = raw.FPDFPage_CreateAnnot(page, raw.FPDF_ANNOT_HIGHLIGHT)
    try:
        raw.FPDFAnnot_SetColor(annotation, raw.FPDFANNOT_COLORTYPE_Color, *COLOUR, 128)
        xs, ys = list[float](), list[float]()
        for x0, y0, x1, y1 in boxes:
            corners = [_on_page(page, *corner) for corner in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))]
            raw.FPDFAnnot_AppendAttachmentPoints(annotation, raw.FS_QUADPOINTSF(*(n for c in corners for n in c)))
            xs += [x for x, _ in corners]
            ys += [y for _, y in corners]
        raw.FPDFAnnot_SetRect(annotation, raw.FS_RECTF(min(xs), max(ys), max(xs), min(ys)))
        encoded = note.encode("utf-16-le", "replace") + b"\0\0"
        buffer = ctypes.create_string_buffer(encoded, len(encoded))
        raw.FPDFAnnot_SetStringValue(annotation, b"Contents", ctypes.cast(buffer, raw.FPDF_WIDESTRING))
    finally:
        raw.FPDFPage_CloseAnnot(annotation)


def _on_page(page: Any, x: float, y: float) -> tuple[float, float]:
    """A place on the page as it is shown, in the coordinates of the page: it may be turned or cut."""
    from pypdfium2 import raw

    width, height = (round(side * FINE) for side in page.get_size())
    to_x, to_y = ctypes.c_double(), ctypes.c_double()
    raw.FPDF_DeviceToPage(page, 0, 0, width, height, 0, round(x * FINE), round(y * FINE), to_x, to_y)
    return to_x.value, to_y.value


def main() -> None:
    """Read a PDF from standard input; write the copy as JSON."""
    bounded()
    marks = [Mark(*mark) for mark in json.loads(sys.argv[1])]
    copy, count = _highlight(sys.stdin.buffer.read(), marks)
    sys.stdout.write(json.dumps({"pdf": base64.b64encode(copy).decode(), "marked": count}) + "\n")


if __name__ == "__main__":
    main()
