"""Time grows with the length of a document and not with its square, whatever is repeated in it."""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from kvcli.documents import docx, epub, html, mail, notebook, odf, plain, pptx, rtf, xlsx
from kvcli.documents.document import Source
from kvcli.documents.pdf import damage, pdfium
from kvcli.errors import InputError
from tests.e2e.fuzz.conftest import TIMES
from tests.unit.documents import makers
from tests.unit.documents.makers import paragraph, zipped
from tests.unit.documents.pdf.sheets import sheets, shown
from tests.unit.documents.test_office import A, O, relations, shape

STABLE = 0.08
"""Seconds of processor time from which a ratio means something."""

LARGEST = 1 << 20
"""Bytes beyond which a document is not made longer: what is fast there has no square in it that matters."""

RATIO = 3.2
"""Of the times for 2n and n; a square takes 4."""


def page(text: str) -> bytes:
    return f"<!doctype html><body>{text}".encode()


def book(name: str, text: str) -> bytes:
    chapters = {"a.xhtml": "<p>x</p>"}
    return makers.epub(chapters, more={name: text})


HTML: dict[str, Callable[[int], str]] = {
    "divs in each other": lambda n: "<div>" * n + "deep" + "</div>" * n,
    "elements that stay open": lambda n: "<span>a" * n,
    "formatting that stays open": lambda n: "".join(f"<b id=x{i}>" for i in range(n)) + "<p>x" * n,
    "formatting with a style": lambda n: "".join(f"<i style='a:{i}'>" for i in range(n)) + "<p>x" * n,
    "links with a class": lambda n: "<a class=headerlink>a" * n + "</a>" * n,
    "end tags of nothing": lambda n: "<x>" * n + "</y>" * n,
    "end tags out of order": lambda n: "<x><div></x>" * n + "<u></div></u>" * n,
    "paragraphs in nested divs": lambda n: "<div>" * n + "<p>x" * n,
    "list items in definitions": lambda n: "<dd><li>" * n,
    "options and groups": lambda n: "<optgroup><option>" * n,
    "ruby without ruby": lambda n: "<rt>a<rp>" * n,
    "tables in tables": lambda n: "<table><tr><td>a" * n,
    "cells that span rows": lambda n: "<table>" + "<tr>" + "<td rowspan=9999>ab" * n + "<tr><td>c" * n,
    "cells that span columns": lambda n: "<table>" + "<tr><td colspan=1000>a" * n,
    "words outside of cells": lambda n: "<table>" + "<tr>a" * n,
    "attributes": lambda n: "<p " + " ".join(f"a{i}=1" for i in range(n)) + ">x",
    "attributes of the page": lambda n: "".join(f"<html a{i}=1>" for i in range(n)) + "x",
    "quotes that stay open": lambda n: "<a b='" * n + '<a b="' * n,
    "less-than signs": lambda n: "<" * n + "x",
    "comments": lambda n: "<!--" * n + "x",
    "marks of XML": lambda n: "<?" * n + "<!" * n,
    "scripts": lambda n: "<script>" * n,
    "text areas": lambda n: "<textarea>a</textarea>" * n,
    "forms and buttons": lambda n: "<form><button>a" * n,
    "choices": lambda n: "<select>" + "<option>a" * n,
    "lists": lambda n: "<ol reversed><li>a" * n,
    "templates": lambda n: "<template shadowrootmode=open>a" * n,
    "pages in pages": lambda n: "<iframe srcdoc='&lt;p&gt;x'></iframe>" * n,
    "superscripts": lambda n: "x<sup>2" * n,
    "formulas": lambda n: "<math>" + "<mfrac><mi>a</mi>" * n,
    "drawings": lambda n: "<svg><text>a" * n,
    "headings": lambda n: "<h1>a" * n + "</h1>" * n,
    "blanks": lambda n: "<h1>" + " " * n + "x",
    "entities": lambda n: "&amp;&nbsp;&#x41;" * n + "&" * n,
    "rules of a style sheet": lambda n: "<style>" + ".a{display:none}" * n + "</style>" + "<p class=b>x" * n,
    "names of a style sheet": lambda n: "<style>" + "".join(f".a{i}," for i in range(n)) + "b{display:none}</style>",
    "rules in rules": lambda n: "<style>" + "@media screen{" * n + ".a{display:none}",
    "comments of a style sheet": lambda n: "<style>" + "/*" * n,
    "classes": lambda n: "<style>.a{display:none}</style><p class='" + "b " * n + "'>x",
    "passages that are hidden": lambda n: "<style>.a{display:none}</style>" + "<div class=a>" * n + "x" * n,
    "buttons in paragraphs": lambda n: "<p><button>" * n,
}
WORD: dict[str, Callable[[int], str]] = {
    "empty paragraphs": lambda n: "<w:p/>" * n + paragraph("x"),
    "cells of a row": lambda n: "<w:tbl><w:tr>" + "<w:tc><w:p/></w:tc>" * n + "</w:tr></w:tbl>" + paragraph("x"),
    "rows of a table": lambda n: "<w:tbl>" + f"<w:tr><w:tc>{paragraph('x')}</w:tc></w:tr>" * n + "</w:tbl>",
    "merged cells": lambda n: (
        "<w:tbl>"
        + f'<w:tr><w:tc><w:tcPr><w:vMerge w:val="restart"/></w:tcPr>{paragraph("x")}</w:tc></w:tr>'
        + f"<w:tr><w:tc><w:tcPr><w:vMerge/></w:tcPr><w:p/></w:tc><w:tc>{paragraph('y')}</w:tc></w:tr>" * n
        + "</w:tbl>"
    ),
    "runs": lambda n: "<w:p>" + "<w:r><w:rPr><w:b/></w:rPr><w:t>x</w:t></w:r>" * n + "</w:p>",
    "text boxes": lambda n: "<w:p><w:r>" + f"<w:txbxContent>{paragraph('x')}</w:txbxContent>" * n + "</w:r></w:p>",
    "fields that stay open": lambda n: '<w:p><w:r><w:fldChar w:fldCharType="begin"/><w:t>x</w:t></w:r></w:p>' * n,
}
TEXT: dict[str, Callable[[int], str]] = {
    "a heading of blanks": lambda n: "# a" + " " * n + "b",
    "a heading of signs": lambda n: "#" + " #" * n + "b",
    "headings": lambda n: "# a #\n\n" * n,
    "fences": lambda n: "`" * n + "\n" + "~~~\n" * n,
    "underlines": lambda n: "a\n" + "=" * n + " " * n + "b\n",
    "blanks before a line end": lambda n: ("a" + " " * 50 + "\n") * n,
}
NOTE = '<w:r><w:footnoteReference w:id="4"/></w:r>'
COMMENT = '<w:r><w:commentReference w:id="4"/></w:r>'


def noted(kind: str, reference: str, n: int) -> bytes:
    """A note of ``n`` words that a text refers to ``n`` times."""
    words = paragraph("word " * n)
    body = f'<w:{kind}s {makers.W}><w:{kind} w:id="4">{words}</w:{kind}></w:{kind}s>'
    return makers.docx(f"<w:p>{reference * n}</w:p>", more={f"word/{kind}s.xml": body})


def slides(ids: int, shapes: str) -> bytes:
    """A presentation that names one slide so often."""
    show = "".join(f'<p:sldId id="{i}" r:id="r1"/>' for i in range(ids))
    return zipped(
        {
            "_rels/.rels": relations(r1="officeDocument ppt/presentation.xml"),
            "ppt/presentation.xml": f"<p:presentation {A}><p:sldIdLst>{show}</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": relations(r1="slide slides/s.xml"),
            "ppt/slides/s.xml": f"<p:sld {A}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>",
        }
    )


def sheet(rows: str, strings: str = "") -> bytes:
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    kinds = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    types = "".join(
        f'<Override PartName="/xl/{name}.xml" ContentType="{kinds}.{kind}+xml"/>'
        for name, kind in (("workbook", "sheet.main"), ("s", "worksheet"), ("t", "sharedStrings"))
    )
    packages = "http://schemas.openxmlformats.org/package/2006"
    links = "".join(
        f'<Relationship Id="r{i}" Type="{office}/{kind}" Target="{target}"/>'
        for i, (kind, target) in enumerate([("worksheet", "s.xml"), ("sharedStrings", "t.xml")])
    )
    top = f'<Relationship Id="r" Type="{office}/officeDocument" Target="xl/workbook.xml"/>'
    return zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{packages}/content-types">{types}</Types>',
            "_rels/.rels": f'<Relationships xmlns="{packages}/relationships">{top}</Relationships>',
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{packages}/relationships">{links}</Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
            '<sheet name="a" sheetId="1" r:id="r0"/></sheets></workbook>',
            "xl/s.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>',
            "xl/t.xml": f'<sst xmlns="{main}">{strings}</sst>',
        }
    )


def opened(body: str) -> bytes:
    content = f"<office:document {O}><office:body>{body}</office:body></office:document>"
    return zipped({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content})


def cells(text: str) -> bytes:
    return json.dumps({"cells": [{"cell_type": "code", "source": text}]}).encode()


SLIDES: dict[str, Callable[[int], bytes]] = {
    "shapes": lambda n: slides(1, shape("x") * n),
    "paragraphs": lambda n: slides(1, shape(*["x"] * n)),
    "one slide again and again": lambda n: slides(n, shape("word " * n)),
    "rows": lambda n: slides(
        1, f"<p:graphicFrame><a:tbl>{'<a:tr><a:tc><a:p/></a:tc></a:tr>' * n}</a:tbl></p:graphicFrame>"
    ),
    "cells that span rows": lambda n: slides(
        1,
        "<p:graphicFrame><a:tbl><a:tr>" + "<a:tc rowSpan='9999'><a:p/></a:tc>" * n + "</a:tr></a:tbl></p:graphicFrame>",
    ),
}
SHEETS: dict[str, Callable[[int], bytes]] = {
    "rows": lambda n: sheet("".join(f'<row r="{i + 1}"><c><v>{i}</v></c></row>' for i in range(n))),
    "cells": lambda n: sheet("<row>" + "<c><v>1</v></c>" * min(n, 16_000) + "</row>"),
    "texts": lambda n: sheet('<row><c t="s"><v>0</v></c></row>', "<si><t>x</t></si>" * n),
    "runs of a text": lambda n: sheet('<row><c t="s"><v>0</v></c></row>', f"<si>{'<r><t>x</t></r>' * n}</si>"),
    "rows far apart": lambda n: sheet("".join(f'<row r="{i * 9 + 1}"><c><v>{i}</v></c></row>' for i in range(n))),
    "one text in many cells": lambda n: sheet('<row><c t="s"><v>0</v></c></row>' * n, "<si><t>a word</t></si>"),
}
OPENED: dict[str, Callable[[int], str]] = {
    "paragraphs": lambda n: "<office:text>" + "<text:p>x</text:p>" * n + "</office:text>",
    "spans": lambda n: "<office:text><text:p>" + "<text:span>x</text:span>" * n + "</text:p></office:text>",
    "blanks": lambda n: "<office:text><text:p>x" + '<text:s text:c="9999"/>' * n + "x</text:p></office:text>",
    "notes": lambda n: (
        "<office:text><text:p>" + "<text:note><text:p>x</text:p></text:note>" * n + "</text:p></office:text>"
    ),
    "rows": lambda n: (
        "<office:spreadsheet><table:table>"
        + "<table:table-row><table:table-cell><text:p>x</text:p></table:table-cell></table:table-row>" * n
        + "</table:table></office:spreadsheet>"
    ),
    "empty cells": lambda n: (
        "<office:spreadsheet><table:table><table:table-row>"
        + "<table:table-cell/>" * n
        + "</table:table-row></table:table></office:spreadsheet>"
    ),
    "cells that span rows": lambda n: (
        "<office:spreadsheet><table:table><table:table-row>"
        + '<table:table-cell table:number-rows-spanned="9999"><text:p>x</text:p></table:table-cell>' * n
        + "</table:table-row></table:table></office:spreadsheet>"
    ),
    "list items": lambda n: (
        "<office:text><text:list>"
        + "<text:list-item><text:p>x</text:p></text:list-item>" * n
        + "</text:list></office:text>"
    ),
}
RTF: dict[str, Callable[[int], str]] = {
    "groups": lambda n: "{" * n + "x" + "}" * n,
    "groups that stay open": lambda n: "{\\b x" * n,
    "paragraphs": lambda n: "x\\par " * n,
    "letters": lambda n: "\\'e9" * n + "\\u8364?" * n,
    "cells": lambda n: "x\\cell " * n + "\\row",
    "pictures": lambda n: "{\\pict 00}" * n,
    "fonts": lambda n: "{\\fonttbl" + "".join(f"{{\\f{i}\\fcharset0 A;}}" for i in range(n)) + "}x",
    "stars": lambda n: "{\\*\\x y}" * n,
    "binary": lambda n: "\\bin9" * n,
    "backslashes": lambda n: "\\" * n,
    "blanks": lambda n: "x" + " " * n + "\n" * n + "y",
}
MAIL: dict[str, Callable[[int], str]] = {
    "heads": lambda n: "".join(f"X-{i}: y\n" for i in range(n)) + "\nx",
    "recipients": lambda n: "To: " + "a@b.c, " * n + "\n\nx",
    "recipients in groups": lambda n: "To: " + "a:" * n + "\n\nx",
    "encoded words": lambda n: "Subject: " + "=?utf-8?q?a?= " * n + "\n\nx",
    "encoded words that stay open": lambda n: "Subject: " + "=?utf-8?q?" * n + "\n\nx",
    "comments of a name": lambda n: "From: " + "(" * n + "\n\nx",
    "quotes of a name": lambda n: 'From: "' + '\\"' * n + "\n\nx",
    "dots of a name": lambda n: "From: " + "a." * n + "@b.c\n\nx",
    "folded lines": lambda n: "Subject: a\n" + " b\n" * n + "\nx",
    "parameters": lambda n: "Content-Type: text/plain; " + "".join(f"a{i}=b; " for i in range(n)) + "\n\nx",
    "parts": lambda n: "Content-Type: multipart/mixed; boundary=a\n\n" + "--a\n\nx\n" * n + "--a--",
    "parts in parts": lambda n: "".join(f"Content-Type: multipart/mixed; boundary=a{i}\n\n--a{i}\n" for i in range(n)),
    "quoted letters": lambda n: "Content-Transfer-Encoding: quoted-printable\n\n" + "=C3=A9=" * n,
    "mails in mails": lambda n: "Content-Type: message/rfc822\n\n" * n,
}
CELLS: dict[str, Callable[[int], bytes]] = {
    "cells": lambda n: json.dumps({"cells": [{"cell_type": "markdown", "source": "x"}] * n}).encode(),
    "lines": lambda n: json.dumps({"cells": [{"cell_type": "code", "source": ["x\n"] * n}]}).encode(),
    "back quotes": lambda n: cells("`" * n),
    "back quotes of every length": lambda n: cells("\n".join("`" * i for i in range(round((2 * n) ** 0.5)))),
    "lists in lists": lambda n: b"[" * n,
}


def commented(n: int) -> bytes:
    entry = b"<< /Type /Annot /Subtype /Text /Rect [72 600 300 620] /Contents (See page 4.) >>"
    names = " ".join(f"{1000 + i} 0 R" for i in range(n))
    return sheets([shown("x", 72, 700)], page=f"/Annots [{names}]", objects={1000 + i: entry for i in range(n)})


def form(n: int) -> bytes:
    packet = b"<template xmlns='x'>" + b"<field><caption>a</caption></field>" * n + b"</template>"
    catalog = "/NeedsRendering true /AcroForm << /Fields [] /XFA 1000 0 R >>"
    stream = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(packet), packet)
    return sheets([shown("x", 72, 700)], catalog=catalog, objects={1000: stream})


def check(source: Source) -> None:
    """What is looked for in the bytes of a PDF, whatever they are."""
    damage.lost(source.data)
    damage.leaves(source.data)
    damage.streams(source.data)


PDF: dict[str, Callable[[int], bytes]] = {
    "dictionaries": lambda n: b"<<" * n + b">>" * n,
    "dictionaries of streams": lambda n: b"<< /Filter /FlateDecode >>stream\n" * n,
    "trees of pages": lambda n: b"<< /Type /Pages " * n,
    "entries of a table": lambda n: b"xref\n0 9\n" + b"0000000009 00000 n \n" * n + b"startxref\n0\n",
    "tables": lambda n: b"xref\n0 1\n0000000009 00000 n \n/Prev 0\nstartxref\n0\n" * n,
}
CASES: dict[str, tuple[Callable[[Source], object], str, Callable[[int], bytes]]] = {
    **{f"html: {k}": (html.extract, "a.html", lambda n, f=f: page(f(n))) for k, f in HTML.items()},
    **{f"docx: {k}": (docx.extract, "a.docx", lambda n, f=f: makers.docx(f(n))) for k, f in WORD.items()},
    **{f"markdown: {k}": (plain.extract, "a.md", lambda n, f=f: f(n).encode()) for k, f in TEXT.items()},
    **{f"pptx: {k}": (pptx.extract, "a.pptx", f) for k, f in SLIDES.items()},
    **{f"xlsx: {k}": (xlsx.extract, "a.xlsx", f) for k, f in SHEETS.items()},
    **{f"odf: {k}": (odf.extract, "a.odt", lambda n, f=f: opened(f(n))) for k, f in OPENED.items()},
    **{f"rtf: {k}": (rtf.extract, "a.rtf", lambda n, f=f: f"{{\\rtf1 {f(n)}}}".encode()) for k, f in RTF.items()},
    **{f"mail: {k}": (mail.extract, "a.eml", lambda n, f=f: f(n).encode()) for k, f in MAIL.items()},
    **{f"notebook: {k}": (notebook.extract, "a.ipynb", f) for k, f in CELLS.items()},
    **{f"pdf: {k}": (check, "a.pdf", f) for k, f in PDF.items()},
    "pdf: comments": (lambda s: list(pdfium.pieces(s.data)), "a.pdf", commented),
    "pdf: fields of a template": (lambda s: list(pdfium.pieces(s.data)), "a.pdf", form),
    "docx: a note of many words": (docx.extract, "a.docx", lambda n: noted("footnote", NOTE, n)),
    "docx: a comment of many words": (docx.extract, "a.docx", lambda n: noted("comment", COMMENT, n)),
    "epub: marks": (epub.extract, "a.epub", lambda n: book("META-INF/container.xml", "<?" * n)),
    "epub: items": (epub.extract, "a.epub", lambda n: book("OEBPS/book.opf", "<item id='a' href='b'/>" * n)),
    "epub: open elements": (epub.extract, "a.epub", lambda n: book("OEBPS/book.opf", "<a>" * n)),
    "xhtml: sections": (html.extract, "a.xhtml", lambda n: b"<![CDATA[" * n),
    "xhtml: elements that close themselves": (html.extract, "a.xhtml", lambda n: b"<p/><i/><a/>" * n),
    "xhtml: declarations": (html.extract, "a.xhtml", lambda n: b"<!DOCTYPE a [" * n),
}


@pytest.fixture(autouse=True, scope="module")
def _no_garbage_of_others() -> None:
    """A collection that visits what other tests have left would count as time of the document."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("case", CASES)
def test_twice_the_length_takes_twice_the_time(case: str) -> None:
    read, name, make = CASES[case]
    draw = random.Random(case)

    def cost(n: int) -> float:
        source = Source(make(n), name, name)
        start = time.process_time()
        with suppress(InputError):
            read(source)
        return time.process_time() - start

    for _ in range(TIMES):
        n = draw.randrange(1_000, 2_000)
        once = cost(n)
        while once < STABLE and len(make(1_000)) * n < LARGEST * 1_000:
            n *= 2
            once = cost(n)
        if once < STABLE:
            return
        for _ in range(3):  # a step in the times, such as where a cache is full, is no square: longer ones show it
            twice = cost(2 * n)
            for _ in range(9):
                if twice > RATIO * once:  # a neighbour may have taken the cache: once more
                    once, twice = min(once, cost(n)), min(twice, cost(2 * n))
            if twice < RATIO * once:
                break
            n, once = 2 * n, twice
        assert twice < RATIO * once, f"{case}: {once:.2f} s for {n:,}, {twice:.2f} s for the double"
