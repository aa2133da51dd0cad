"""A copy of a PDF with highlights: the text stays, and each highlight covers its quote, also on turned pages."""

from __future__ import annotations

import json
from io import BytesIO

import pypdfium2 as pdfium
import pytest
from pypdf import PdfReader

from kvcli.documents.document import Source
from kvcli.documents.pdf import highlight
from kvcli.documents.pdf.highlight import Mark, highlighted
from kvcli.errors import InputError
from tests.unit.documents.makers import Page, lines, pdf

TEXT = ["The old man sat by the harbour and mended", "his nets until the light was gone.", "Then he went home."]


def texts(data: bytes) -> list[str]:
    return [page.get_textpage().get_text_range() for page in pdfium.PdfDocument(data)]


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_highlights_cover_their_quotes(rotate: int) -> None:
    data = pdf([Page(lines(["Nothing is here."])), Page(lines(TEXT), rotate=rotate)])
    quote = "nets until the light" if rotate else "mended his nets until"  # turned lines come in any order
    marks = [Mark(2, quote, "Why? ü\n\nBecause."), Mark(2, "not there"), Mark(1, "Nothing")]
    copy, count = highlight._highlight(data, marks)
    assert count == 2
    assert texts(copy) == texts(data)
    first, second = PdfReader(BytesIO(copy)).pages
    assert len(first["/Annots"]) == 1
    (note,) = (a.get_object() for a in second["/Annots"])
    assert note["/Subtype"] == "/Highlight"
    assert note["/Contents"] == "Why? ü\n\nBecause."
    quads = [float(n) for n in note["/QuadPoints"]]
    assert len(quads) == (32 if rotate else 16)  # four words, two lines
    page = pdfium.PdfDocument(copy)[1].get_textpage()
    covered = ""
    for i in range(0, len(quads), 8):
        xs, ys = quads[i : i + 8 : 2], quads[i + 1 : i + 8 : 2]
        covered += page.get_text_bounded(min(xs), min(ys), max(xs), max(ys)) + " "
    assert sorted(covered.split()) == sorted(quote.split())
    left, bottom, right, top = (float(n) for n in note["/Rect"])
    assert left < right
    assert bottom < top


def test_in_a_process_of_its_own() -> None:
    copy, count = highlighted(Source(pdf([Page(lines(TEXT))]), "a.pdf", "a.pdf"), [Mark(1, "the light", "note")])
    assert count == 1
    assert json.dumps(texts(copy)[0].split())
    with pytest.raises(InputError):
        highlighted(Source(b"%PDF-1.5 broken", "a.pdf", "a.pdf"), [Mark(1, "x")])
