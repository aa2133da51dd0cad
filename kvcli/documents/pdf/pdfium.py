"""PDFium in a process of its own: words with their places, page by page, as JSON Lines on standard output.

A PDF is a program for a C++ library. In this process it may crash, hang or fill memory without ending kvcli.
The module :mod:`kvcli.documents.pdf` starts this one, hands the file over on standard input and limits its time.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kvcli.documents.isolated import bounded
from kvcli.documents.pages import Ranges, around
from kvcli.documents.pdf.annotations import annotations
from kvcli.documents.pdf.damage import leaves, lost, streams
from kvcli.documents.pdf.fonts import Fonts
from kvcli.documents.pdf.inside import files, form, is_portfolio
from kvcli.documents.pdf.layers import has_layers, hidden, marked
from kvcli.documents.pdf.words import Boxes, Letters, words

CHARACTERS = 200_000
"""Of one page; a page of a book has 3,000 and a dense table 20,000."""

OUTLINE = 20_000
"""Entries of the outline, however they refer to each other."""

ATTACHED = 1_000
"""Files within the document that are named."""

FEW = 1_500
"""Below so many characters a page is looked at for pictures."""

OBJECTS = 2_000
"""Page objects looked at for pictures."""

NEAR = 10
"""Pages on either side of chosen pages that are read with them."""


def pieces(data: bytes, ranges: Ranges = ()) -> Iterator[dict[str, Any]]:
    """The head of the document, then its pages; a failure is ``error``, for the document PDFium's number of it.

    Of chosen ``ranges`` the pages near them are read too: they tell running heads, and words that a hyphen divides.
    """
    import pypdfium2 as pdfium
    from pypdfium2 import raw

    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        yield {"error": getattr(error, "err_code", 0) or 0}
        return
    layers: list[str] | None = []
    if has_layers(data):
        try:
            copy, layers = marked(data)
            document = pdfium.PdfDocument(copy) if layers else document
        except Exception:  # pypdf reads less damage than PDFium, which opens the file as it is
            layers = None
    with contextlib.suppress(pdfium.PdfiumError):
        document.init_forms()
    dynamic = document.get_formtype() == raw.FORMTYPE_XFA_FULL
    broken, unsure = (0, 0) if b"/Encrypt" in data else streams(data)
    yield {
        "pages": len(document),
        "whole": bool(raw.FPDF_DocumentHasValidCrossReferenceTable(document)),
        "broken": broken,
        "unsure": unsure,
        "lost": lost(data),
        "strays": max(0, leaves(data) - len(document)),
        "outline": list(_outline(document)),
        "dynamic": dynamic,
        "form": form(document) if dynamic else [],
        "attached": (attached := list(_attached(document))),
        "portfolio": (portfolio := bool(attached) and is_portfolio(data)),
        "layers": layers,
    }
    fonts = Fonts(data)
    for number in around(ranges, len(document), NEAR):
        try:
            yield _page(document, number, fonts, hides=bool(layers))
        except pdfium.PdfiumError as error:
            yield {"page": number, "error": str(error)[:200]}
    if portfolio and not ranges:
        yield from files(document)


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


def _attached(document: Any) -> Iterator[str]:
    """Names of the files within the document."""
    with contextlib.suppress(Exception):
        for i in range(min(ATTACHED, document.count_attachments())):
            yield document.get_attachment(i).get_name()[:200]


def _page(document: Any, number: int, fonts: Fonts, *, hides: bool = False) -> dict[str, Any]:
    page = document[number - 1]
    text = page.get_textpage()
    try:
        width, height = page.get_size()
        count = text.count_chars()
        boxes = Boxes(page, text)
        count_read = min(count, CHARACTERS)
        unseen = hidden(text, count_read) if hides else ()
        letters = words(boxes, text, count_read, fonts.page(number), unseen) if count > 0 else Letters([])
        turns = Counter(w.turns for w in letters.words).most_common(1)
        besides = annotations(page, document.formenv, boxes.shown, turns[0][0] if turns else 0)
        found: dict[str, Any] = {
            "page": number,
            "label": document.get_page_label(number - 1)[:40] or None,
            "width": width,
            "height": height,
            "words": letters.words + besides["words"],
            "comments": besides["comments"],
            "unread": besides["unread"],
            "unknown": letters.unknown,
            "guessed": letters.guessed,
            "cut": max(0, count - CHARACTERS),
        }
        if count < FEW:
            found["picture"] = _picture(page)
        return found
    finally:
        text.close()
        page.close()


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
    for piece in pieces(sys.stdin.buffer.read(), json.loads(sys.argv[1])):
        sys.stdout.write(json.dumps(piece) + "\n")
        sys.stdout.flush()
        bounded()


if __name__ == "__main__":
    main()
