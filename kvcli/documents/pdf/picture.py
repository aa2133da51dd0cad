"""A page as a picture with a quote marked, drawn by PDFium in a process of its own."""

import base64
import json
import struct
import sys
import zlib
from typing import Any

from kvcli.documents.document import Source
from kvcli.documents.isolated import bounded, run
from kvcli.documents.pages import Ranges, select
from kvcli.documents.pdf.fonts import Fonts
from kvcli.documents.pdf.words import Boxes, Word, words
from kvcli.errors import InputError

IMAGES = "--pages-as-images"
DPI, PIXELS = 110, 4_000_000
CHARACTERS = 200_000


def picture(source: Source, page: int, quote: str = "") -> bytes:
    """A page as PNG.

    Args:
        source: a PDF.
        page: from 1.
        quote: words to mark, if the page has them.

    Raises:
        InputError: the page cannot be drawn.
    """
    for found in run("kvcli.documents.pdf.picture", source, str(page), quote, silence=60):
        return base64.b64decode(found["png"])
    raise InputError(f"page {page} of {source.name} cannot be drawn")


def pages(source: Source, ranges: Ranges) -> list[tuple[int, bytes]]:
    """Pages of a PDF with their numbers, as PNG; none if PDFium cannot open it.

    Raises:
        UsageError: there is no such page.
        InputError: a page cannot be drawn.
    """
    answers = run("kvcli.documents.pdf.picture", source, silence=60)
    total = next(answers, {"pages": 0})["pages"]
    answers.close()
    return [(number, picture(source, number)) for number in select(ranges, total, source.name, IMAGES)] if total else []


def marked(page: list[Word], quote: str) -> list[Word]:
    """The words of a page that hold a quote; line ends, hyphens and punctuation do not count."""
    folded = [_folded(word.text) for word in page]
    text, wanted = "".join(folded), _folded(quote)
    start = text.find(wanted) if wanted else -1
    found, at = [], 0
    for word, letters in zip(page, folded, strict=True):
        if start >= 0 and letters and at < start + len(wanted) and start < at + len(letters):
            found.append(word)
        at += len(letters)
    return found


def _folded(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def png(pixels: Any) -> bytes:
    """An RGB picture, uint8 ``[height, width, 3]``, as a file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")


def _draw(data: bytes, number: int, quote: str) -> bytes:
    import numpy as np
    import pypdfium2 as pdfium

    document = pdfium.PdfDocument(data)
    page = document[number - 1]
    width, height = page.get_size()
    scale = min(DPI / 72, (PIXELS / max(1.0, width * height)) ** 0.5)
    pixels = np.ascontiguousarray(page.render(scale=scale, rev_byteorder=True).to_numpy()[:, :, :3])
    if quote:
        text = page.get_textpage()
        count = min(text.count_chars(), CHARACTERS)
        found = words(Boxes(page, text), text, count, Fonts(data).page(number)).words if count > 0 else []
        for word in marked(found, quote):
            x0, y0, x1, y1 = (max(0, round(edge * scale)) for edge in word[1:5])
            pixels[y0:y1, x0:x1] = np.minimum(pixels[y0:y1, x0:x1], np.array([255, 226, 90], np.uint8))
    return png(pixels)


def main() -> None:
    """Read a PDF from standard input; write the picture of a page as JSON, or without arguments how many there are."""
    bounded()
    data = sys.stdin.buffer.read()
    if not sys.argv[1:]:
        import pypdfium2 as pdfium

        sys.stdout.write(json.dumps({"pages": len(pdfium.PdfDocument(data))}) + "\n")
        return
    number, quote = sys.argv[1:]
    drawn = _draw(data, int(number), quote)
    sys.stdout.write(json.dumps({"png": base64.b64encode(drawn).decode()}) + "\n")


if __name__ == "__main__":
    main()
