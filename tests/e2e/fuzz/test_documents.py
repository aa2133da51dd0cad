"""Damaged PDF, EPUB, DOCX and HTML files: refused by name, or read as what they were, or said to be incomplete.

Never another exception, never for ever. ZIP archives and saved readings carry checksums over everything that is read,
so there the text is the whole one or none. A PDF has them in its streams only: a page whose object is damaged may come
out empty, and is then named as such. HTML has none; that it breaks off is all that can be seen.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from kvcli.documents import Document, pdf, read, reader
from kvcli.documents.worker import ReaderProcess
from kvcli.errors import InputError
from tests.e2e.fuzz.conftest import TIMES, clear, in_time
from tests.e2e.fuzz.mutate import mutants
from tests.e2e.fuzz.serve import Server
from tests.unit.documents import makers
from tests.unit.documents.makers import Page, W, docx, epub, lines, paragraph, zipped

Load = Callable[[str, bytes], Document | None]

PROSE = "".join(f"<p>Ship number {i} sailed to the harbour of call {7 * i}.</p>" for i in range(30))
CHAPTERS = {
    "a.xhtml": f"<h1>One</h1>{PROSE}",
    "b.xhtml": "<h2>Two</h2><ul><li>one</li></ul><table><tr><td>a</td><td>b</td></tr></table><pre>x\n y</pre>",
}
NOTE = f'<w:footnotes {W}><w:footnote w:id="1"><w:p><w:r><w:t>a note</w:t></w:r></w:p></w:footnote></w:footnotes>'
RELATION = makers.RELATIONS.replace('officeDocument" Target="word/document.xml', 'footnotes" Target="footnotes.xml')
BODY = paragraph("Head", "Heading1") + paragraph("The ship sailed.") * 9
BODY += '<w:p><w:r><w:footnoteReference w:id="1"/></w:r></w:p><w:tbl><w:tr><w:tc><w:p/></w:tc></w:tr></w:tbl>'
NAMES = ("Pequod", "Rachel", "Delight", "Jeroboam")
PAPERS = [Page(lines([f"{9 * i + j} guns had the {name}" for j in range(9)])) for i, name in enumerate(NAMES)]

BOOKS: dict[str, bytes] = {
    "epub": epub(CHAPTERS),
    "docx": docx(BODY, more={"word/footnotes.xml": NOTE, "word/_rels/document.xml.rels": RELATION}),
    "pdf": makers.pdf(PAPERS, outline=[("One", 1), ("Two", 3)], labels="0 << /S /r >> 2 << /S /D >>"),
    "html": f"<!doctype html><html><body>{''.join(CHAPTERS.values())}<p>Grüße, 10 €</p></body></html>".encode(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def readers() -> Iterator[ReaderProcess]:
    with ReaderProcess() as readers:
        yield readers


@pytest.fixture
def load(tmp_path: Path, server: Server, readers: ReaderProcess, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Read a file of this name and content; ``None`` where it is refused."""
    monkeypatch.setattr(pdf, "run", server.run)
    monkeypatch.setattr(reader, "ReaderProcess", lambda: nullcontext(readers))

    def load(name: str, data: bytes) -> Document | None:
        (tmp_path / name).write_bytes(data)
        with in_time(name):
            try:
                return read([tmp_path / name])
            except InputError as error:
                clear(error, name)
                return None

    return load


@pytest.mark.parametrize("kind", ["epub", "docx"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_archive_is_whole_or_refused(load: Load, kind: str, method: int) -> None:
    whole, found = _packed(BOOKS[kind], method), Counter[bool]()
    text = _text(load(f"a.{kind}", whole))
    for name, data in mutants(whole, 150 * TIMES, seed=method):
        document = load(f"a.{kind}", data)
        assert document is None or document.text == text or document.warnings, name
        found[document is None] += 1
    assert found[True] > found[False], "the damage reaches what matters"


@pytest.mark.parametrize("kind", ["epub", "docx"])
def test_damage_inside_an_archive_is_another_book(load: Load, kind: str) -> None:
    """Mutations below the checksums: whatever XML there is, it is read or refused."""
    members = _members(BOOKS[kind])
    found = Counter[bool]()
    for member, content in members.items():
        for _name, data in mutants(content, 25 * TIMES, seed=1):
            found[load(f"a.{kind}", zipped({**members, member: data})) is None] += 1
    assert found[True]
    assert found[False]


def test_a_damaged_pdf_loses_no_page_in_silence(load: Load) -> None:
    intact = load("a.pdf", BOOKS["pdf"])
    assert intact is not None
    pages, found = _pages(intact), Counter[str]()
    for name, data in mutants(BOOKS["pdf"], 300 * TIMES, seed=2):
        document = load("a.pdf", data)
        if document is None:
            found["refused"] += 1
        elif document.warnings:
            found["warned"] += 1
        else:
            empty = {page for _, page in document.without_text}
            left = {n: text for n, text in _pages(document).items() if n not in empty}
            assert left.items() <= pages.items(), name
            assert left.keys() | empty == pages.keys(), name
            found["empty" if empty else "whole"] += 1
    assert found["refused"] > 50, found
    assert found["whole"] > 20, found


def test_a_damaged_pdf_kills_nobody(server: Server) -> None:
    assert server.starts < 3, "PDFium dies of damaged files: its process is what saves kvcli"


def test_damaged_pdfs_through_a_process_of_their_own(tmp_path: Path) -> None:
    """A few of them the way the product goes."""
    for name, data in mutants(BOOKS["pdf"], 8, seed=3):
        (tmp_path / "a.pdf").write_bytes(data)
        with in_time(name):
            try:
                assert read([tmp_path / "a.pdf"]).text
            except InputError as error:
                clear(error, "a.pdf")


def test_a_damaged_page_of_html_is_read_or_refused(load: Load) -> None:
    """No words but its own, and a page that breaks off is said to."""
    for name, data in mutants(BOOKS["html"], 200 * TIMES, seed=4):
        document = load("a.html", data)
        if document is not None and name.startswith("cut") and b"<html>" in data:
            assert "may break off" in " ".join(document.warnings), name


@pytest.mark.parametrize("kind", ["pdf", "epub", "docx"])
def test_the_first_bytes_of_a_book_are_no_text(load: Load, kind: str) -> None:
    """A download that broke off after a byte, and a server's excuse under the book's name."""
    for data in (BOOKS[kind][:1], BOOKS[kind][:2], BOOKS[kind][:4], b"404 page not found"):
        assert load(f"a.{kind}", data) is None


def _text(document: Document | None) -> str:
    assert document is not None
    return document.text


def _pages(document: Document) -> dict[int, str]:
    """The source's own words by page; a label may be lost with the tree of labels."""
    found: dict[int, str] = {}
    for span in document.spans:
        assert span.page is not None
        found[span.page] = re.sub(r"\s+", " ", document.text[span.body : span.end]).strip()
    return found


def _members(book: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(book)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(book: bytes, method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in _members(book).items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()
