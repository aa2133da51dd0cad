"""PDFium in a process of its own: words with their places, page by page, as JSON Lines on standard output.

A PDF is a program for a C++ library. Here it may crash, hang or fill memory without taking kvcli with it:
:mod:`kvcli.documents.pdf` starts this module, hands the file over on standard input and watches the clock.
"""

import contextlib
import ctypes
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from kvcli.documents.isolated import bounded

CHARACTERS = 200_000
"""Of one page; a page of a book has 3,000 and a dense table 20,000."""

OUTLINE = 20_000
"""Entries of the outline, however they refer to each other."""

FEW = 1_500
"""Below so many characters a page is looked at for pictures."""

OBJECTS = 2_000
"""Page objects looked at for pictures."""

INFLATED = 1 << 30
"""Bytes all streams of text together may unpack to while they are checked."""

HYPHEN = "\ufffe"
"""PDFium's sign for a hyphen at the end of a line."""

_WORD = re.compile(rf"[^\s{HYPHEN}\x02]+[{HYPHEN}\x02]?|[{HYPHEN}\x02]")
_LEAF = re.compile(rb"(\d{1,9})\s+\d{1,5}\s+obj\b|/Type\s*/Page(?![A-Za-z])")
_TREE = re.compile(rb"<<(?:[^<>]|<<[^<>]*>>){0,2000}?/Type\s*/Pages\b(?:[^<>]|<<[^<>]*>>){0,2000}>>")
_COUNT = re.compile(rb"/Count\s+(\d{1,9})")
_FLATE = re.compile(rb"<<((?:[^<>]|<<[^<>]*>>|<[0-9a-fA-F\s]*>){0,2000})>>\s*stream\r?\n")

Word = tuple[str, float, float, float, float, int]
"""Text; left, top, right, bottom in points from the page's upper left corner; quarter turns counter-clockwise."""


def pieces(data: bytes) -> Iterator[dict[str, Any]]:
    """The head of the document, then its pages; a failure is ``error``, for the document PDFium's number of it."""
    import pypdfium2 as pdfium
    from pypdfium2 import raw

    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        yield {"error": getattr(error, "err_code", 0) or 0}
        return
    yield {
        "pages": len(document),
        "whole": bool(raw.FPDF_DocumentHasValidCrossReferenceTable(document)),
        "broken": 0 if b"/Encrypt" in data else broken_streams(data),
        "strays": max(0, leaves(data) - len(document)),
        "outline": list(_outline(document)),
    }
    for number in range(1, len(document) + 1):
        try:
            yield _page(document, number)
        except pdfium.PdfiumError as error:
            yield {"page": number, "error": str(error)[:200]}


def broken_streams(data: bytes) -> int:
    """How many compressed streams that may hold text do not unpack: PDFium would leave them out in silence."""
    broken, room = 0, INFLATED
    for match in _FLATE.finditer(data):
        words = match[1]
        if not re.search(rb"/Filter\s*\[?\s*/FlateDecode", words) or re.search(
            rb"/Image|/Length[123]\b|/Alternate", words
        ):
            continue
        end = data.find(b"endstream", match.end())
        packed = data[match.end() : end if end >= 0 else len(data)]
        engine, rest = zlib.decompressobj(), packed
        try:
            while rest and not engine.eof and room > 0:
                room -= len(engine.decompress(rest, 1 << 20))
                rest = engine.unconsumed_tail
            broken += room > 0 and not engine.eof
        except zlib.error:
            broken += 1
    return broken


def leaves(data: bytes) -> int:
    """How many pages a file means to have: by its page objects or its page tree, whichever says more.

    Compressed streams of objects are not looked into.
    """
    found, at = set[bytes](), b""
    for match in _LEAF.finditer(data):
        at = match[1] or at
        if not match[1]:
            found.add(at)
    return max([len(found), *(int(n[1]) for tree in _TREE.finditer(data) for n in _COUNT.finditer(tree[0]))])


def _outline(document: Any) -> Iterator[tuple[int, str, int]]:
    """Level, title and page number of the outline's entries."""
    with contextlib.suppress(Exception):  # an outline is a comfort; a book is read without one
        for i, mark in enumerate(document.get_toc(max_depth=8)):
            if i == OUTLINE:
                return
            dest = mark.get_dest()
            index = dest.get_index() if dest else None
            if index is not None:
                yield mark.level, (mark.get_title() or "").strip()[:300], index + 1


def _page(document: Any, number: int) -> dict[str, Any]:
    page = document[number - 1]
    text = page.get_textpage()
    try:
        width, height = page.get_size()
        count = text.count_chars()
        found: dict[str, Any] = {
            "page": number,
            "label": document.get_page_label(number - 1)[:40] or None,
            "width": width,
            "height": height,
            "words": words(page, text, min(count, CHARACTERS)) if count > 0 else [],
            "cut": max(0, count - CHARACTERS),
        }
        if count < FEW:
            found["picture"] = _picture(page)
        return found
    finally:
        text.close()
        page.close()


def words(page: Any, text: Any, count: int) -> list[Word]:
    """The words of a page in the order of its content stream, upright as the page is shown."""
    from pypdfium2 import raw

    box = raw.FS_RECTF()
    left, bottom, right, top = page.get_bbox()
    rotation = page.get_rotation()
    found: list[Word] = []
    for match in _WORD.finditer(text.get_text_range(0, count)):
        xs: list[float] = []
        ys: list[float] = []
        turn = 0.0
        for i in (match.start(), match.end() - 1):
            at = raw.FPDFText_GetCharIndexFromTextIndex(text, i)
            if at >= 0 and raw.FPDFText_GetLooseCharBox(text, at, ctypes.byref(box)):
                xs += (box.left, box.right)
                ys += (box.bottom, box.top)
                turn = raw.FPDFText_GetCharAngle(text, at)
        if not xs:
            continue
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        place = {
            0: (x0 - left, top - y1, x1 - left, top - y0),
            90: (y0 - bottom, x0 - left, y1 - bottom, x1 - left),
            180: (right - x1, y0 - bottom, right - x0, y1 - bottom),
            270: (top - y1, right - x1, top - y0, right - x0),
        }[rotation]
        turns = (round(turn / (math.pi / 2)) - rotation // 90) % 4
        a, b, c, d = (round(v, 1) for v in place)
        found.append((match[0], a, b, c, d, turns))
    return found


def _picture(page: Any) -> bool:
    """Whether a page shows something that is not text: images over a fifth of it, or a great many lines."""
    from pypdfium2 import raw

    width, height = page.get_size()
    covered, paths = 0.0, 0
    for i, item in enumerate(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH], max_depth=4)):
        if i == OBJECTS:
            break
        if item.type == raw.FPDF_PAGEOBJ_PATH:
            paths += 1
        else:
            with contextlib.suppress(Exception):
                x0, y0, x1, y1 = item.get_bounds()
                covered += max(0.0, min(x1, width) - max(x0, 0)) * max(0.0, min(y1, height) - max(y0, 0))
    return covered > 0.2 * width * height or paths > 200


def main() -> None:
    """Read a PDF from standard input; write one JSON object per line."""
    bounded()
    for piece in pieces(sys.stdin.buffer.read()):
        sys.stdout.write(json.dumps(piece) + "\n")
        sys.stdout.flush()
        bounded()


if __name__ == "__main__":
    main()
