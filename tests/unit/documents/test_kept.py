"""Extracted texts on disk: what is kept equals what is extracted; damage, other files and options are seen."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcli.documents import Document, Options, pages, read, reader
from kvcli.documents.document import Extract, Part, Source
from kvcli.documents.kept import DocumentCache
from kvcli.documents.pdf import pdfium
from tests.unit.documents.makers import Page, lines, pdf

WORDS = ["harbour", "net", "light", "sail", "gull", "rope", "tide", "boat"]


def book(count: int, word: str = "harbour", head: str = "") -> bytes:
    return pdf(
        [
            Page([*([(72, 40, 9, head)] if head else []), *lines([f"Leaf {i} tells of the {word}.", "It ends here."])])
            for i in range(1, count + 1)
        ]
    )


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kvcli.documents.pdf.run", lambda _module, source, given: pdfium.pieces(source.data, json.loads(given))
    )


@pytest.fixture
def kept(tmp_path: Path) -> DocumentCache:
    (tmp_path / "texts").mkdir()
    return DocumentCache(tmp_path / "texts")


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that a reader was asked to lay out."""
    asked, extract = list[str](), reader.import_module("kvcli.documents.pdf").extract

    def counted(source: Source) -> Extract:
        asked.append(Path(source.name).name)
        found: Extract = extract(source)
        return found

    monkeypatch.setattr("kvcli.documents.pdf.extract", counted)
    return asked


def test_a_file_is_laid_out_once(tmp_path: Path, kept: DocumentCache, layouts: list[str]) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(book(3))
    first = read([path], kept=kept)
    assert read([path], kept=kept) == first == read([path])
    assert layouts == ["a.pdf", "a.pdf"]  # the second is that without a cache
    path.write_bytes(book(3, "sail"))
    assert "sail" in read([path], kept=kept).text
    assert read([path], options=Options(pages=pages.parse("2")), kept=kept).pages == 1
    assert len(layouts) == 4
    assert {oct(p.stat().st_mode & 0o777) for p in kept.folder.iterdir()} == {"0o600"}
    assert [e.name for e in kept.entries()] == [str(path)] * 3
    read([path], kept=DocumentCache(kept.folder, reuse=False))
    assert len(layouts) == 5


def test_texts_themselves_are_not_kept(tmp_path: Path, kept: DocumentCache) -> None:
    (tmp_path / "a.txt").write_text("Words.")
    read([tmp_path / "a.txt"], kept=kept)
    assert not kept.entries()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data())
def test_a_damaged_entry_is_extracted_anew(tmp_path: Path, data: st.DataObject) -> None:
    kept = DocumentCache(tmp_path)
    source = Source(b"%PDF", "a.pdf", "a.pdf")
    found = Extract([Part("\ud800 wörds", 1, 2, "iv", "A › B", 3), Part("")], 2, ["w"], ["n"], [1])
    place = kept.path(source, "pdf")
    kept.put(place, "a.pdf", found)
    assert kept.get(place) == found
    whole = place.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    place.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert kept.get(place) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[1]\nx", b"\xff\xfe", b'{"sha256": 1}\n'])
def test_any_bytes_are_no_entry(tmp_path: Path, content: bytes) -> None:
    kept = DocumentCache(tmp_path)
    place = kept.path(Source(b"%PDF", "a.pdf", "a.pdf"), "pdf")
    place.write_bytes(content)
    assert kept.get(place) is None
    assert len(kept.entries()) == 1
    assert kept.remove() != []


def test_the_least_recently_used_are_deleted_first(tmp_path: Path) -> None:
    kept = DocumentCache(tmp_path, 1000)
    places = [kept.path(Source(bytes([i]), f"{i}.pdf", ""), "pdf") for i in range(9)]
    for i, place in enumerate(places):
        kept.put(place, f"{i}.pdf", Extract([Part(os.urandom(60).hex())]))
        os.utime(place, (i, i)) if place.exists() else None
    left = [e.name for e in kept.entries()]
    assert left == [f"{i}.pdf" for i in (8, 7, 6, 5, 4, 3, 2, 1, 0)][: len(left)]
    assert sum(e.size for e in kept.entries()) <= 1000
    assert 1 < len(left) < 9
    kept.put(places[0], "large.pdf", Extract([Part(os.urandom(2000).hex())]))
    assert "large.pdf" not in {e.name for e in kept.entries()}
    kept.prune(0)
    assert not kept.entries()


def test_a_folder_that_takes_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(book(1))
    assert read([path], kept=DocumentCache(tmp_path / "missing")).pages == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "file"))
    assert DocumentCache.default() is None


def chosen(path: Path, ranges: str) -> tuple[Document, list[int]]:
    """The document of chosen pages, and the pages that PDFium was asked for."""
    asked = list[int]()
    original = pdfium._page

    def page(document: Any, number: int, *more: Any, **options: Any) -> dict[str, Any]:
        asked.append(number)
        return original(document, number, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdfium, "_page", page)
        return read([path], options=Options(pages=pages.parse(ranges))), asked


def test_chosen_pages_are_laid_out_with_their_neighbours_only(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(book(40, head="The Old Harbour"))
    whole = read([path])
    for ranges, numbers in (("30", {30}), ("1-2,40", {1, 2, 40}), ("20-22", {20, 21, 22})):
        found, asked = chosen(path, ranges)
        assert {s.page for s in found.spans} == numbers
        assert len(asked) <= 25
        same = {s.page: whole.text[s.start : s.end].strip() for s in whole.spans}
        for span in found.spans:  # running heads are known from the pages around
            if span.page != 1:
                assert found.text[span.start : span.end].strip() == same[span.page]


def test_documents_compare_without_their_cache(tmp_path: Path, kept: DocumentCache) -> None:
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(book(2, name))
    both = [tmp_path / "a.pdf", tmp_path / "b.pdf"]
    first = read(both, kept=kept)
    assert read(both, kept=kept) == first == replace(read(both))
    assert kept.remove([str(both[0])])
    assert [e.name for e in kept.entries()] == [str(both[1])]
