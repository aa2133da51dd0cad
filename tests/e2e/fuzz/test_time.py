"""Time grows with the length of a document and not with its square, whatever is repeated in it."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from kvcli.documents import docx, epub, html, plain
from kvcli.documents.document import Source
from kvcli.errors import InputError
from tests.e2e.fuzz.conftest import TIMES
from tests.unit.documents import makers
from tests.unit.documents.makers import paragraph

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
CASES: dict[str, tuple[Callable[[Source], object], str, Callable[[int], bytes]]] = {
    **{f"html: {k}": (html.extract, "a.html", lambda n, f=f: page(f(n))) for k, f in HTML.items()},
    **{f"docx: {k}": (docx.extract, "a.docx", lambda n, f=f: makers.docx(f(n))) for k, f in WORD.items()},
    **{f"markdown: {k}": (plain.extract, "a.md", lambda n, f=f: f(n).encode()) for k, f in TEXT.items()},
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
