"""HTML, EPUB, DOCX and Markdown: what a reader sees is kept, in order; what nobody sees is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcli.documents import Document, archive, flow, html, read
from kvcli.documents import epub as epub_reader
from kvcli.documents.archive import Archive
from kvcli.documents.document import Source
from kvcli.documents.plain import sections
from kvcli.errors import InputError
from tests.unit.documents.makers import W, docx, epub, paragraph, zipped


def load(tmp_path: Path, name: str, data: bytes | str) -> Document:
    (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read([tmp_path / name])


def text_of(markup: str) -> str:
    return "".join(p.text for p in flow.parts(html.blocks(markup)))


# --- HTML ---

PAGE = """<!doctype html><html><head><title>T</title><style>p {}</style><script>var x = "<p>no</p>";</script></head>
<body><nav><a href="/">Home</a></nav><div role="navigation">Menu</div>
<div style="display:none"><ix:header><ix:hidden>0000012345</ix:hidden></ix:header></div><ix:header>hidden</ix:header>
<h1>Whales<a class="headerlink" href="#whales">¶</a></h1>
<p>The   sperm
whale &amp; the <b>right</b> whale.</p><p hidden>secret</p><noscript>Enable scripts</noscript>
<ul><li>one</li><li>two <ol><li>inner</li></ol></li></ul>
<table><tr><th>ship</th><th>tons</th></tr><tr><td><p>Pequod</p></td><td></td></tr></table>
<pre>  code {
    kept
  }</pre><h2>Ropes</h2><p>first<br>second</p><!-- no --><svg><text>drawn</text></svg></body></html>"""


def test_a_page_as_it_is_seen() -> None:
    assert text_of(PAGE) == (
        "# Whales\n\nThe sperm whale & the right whale.\n\n- one\n- two\n\n1. inner\n\nship | tons\nPequod |\n\n"
        "  code {\n    kept\n  }\n\n## Ropes\n\nfirst\nsecond\n\ndrawn\n"
    )


def test_sections_and_lines(tmp_path: Path) -> None:
    document = load(tmp_path, "a.html", PAGE)
    assert [s.section for s in document.spans] == ["Whales", "Whales › Ropes"]
    at = document.text.index("second")
    assert document.at(at).section == "Whales › Ropes"
    assert document.line(at) == document.text.count("\n", 0, at) + 1
    assert document.pages is None


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="koi8-r">', "koi8-r"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">', "cp1251"),
        ('<?xml version="1.0" encoding="shift_jis"?>', "shift_jis"),
        ("", "utf-8"),
    ],
)
def test_the_declared_encoding_is_used(tmp_path: Path, head: str, encoding: str) -> None:
    words = "吾輩は猫である" if encoding == "shift_jis" else "Зовите меня Измаил"
    data = f"{head}<html><body><p>{words}</p></body></html>".encode(encoding)
    assert load(tmp_path, "a.html", data).text == words + "\n"


def test_a_page_of_many_levels() -> None:
    assert text_of("<div>" * 20_000 + "deep" + "</div>" * 20_000) == "deep\n"


def test_a_table_in_a_table_stays_in_its_row() -> None:
    nested = "<table><tr><td>a</td><td><table><tr><td>b</td><td>c</td></tr></table></td><td>d</td></tr></table>"
    assert text_of(nested) == "a | b | c | d\n"


# --- EPUB ---

BOOK = {
    "b.xhtml": "<h1>Second</h1><p>of it.</p>",
    "a.xhtml": '<h1>First</h1><p>Call me<a id="x"/> Ishmael.</p><script/><p>Some years ago</p>',
    "unused.xhtml": "<p>cover</p>",
}


def test_the_spine_decides_and_what_closes_itself_swallows_nothing(tmp_path: Path) -> None:
    document = load(tmp_path, "a.epub", epub(BOOK, spine=["a.xhtml", "b.xhtml", "a.xhtml"]))
    assert document.text == "# First\n\nCall me Ishmael.\n\nSome years ago\n\n# Second\n\nof it.\n"
    assert [s.section for s in document.spans] == ["First", "Second"]


def test_pages_of_the_printed_book(tmp_path: Path) -> None:
    body = (
        '<p><span epub:type="pagebreak" title="iv"/>One <span role="doc-pagebreak" aria-label="5"></span>two</p>'
        '<p>three<span epub:type="pagebreak" id="page6"></span></p>'
    )
    document = load(tmp_path, "a.epub", epub({"a.xhtml": body}))
    assert document.text == "[page 1, printed iv] One [page 2, printed 5] two\n\nthree[page 3, printed 6]\n"
    assert document.at(document.text.index("three")).label == "5"
    assert document.pages == 3


def test_no_path_leads_out_of_the_archive(tmp_path: Path) -> None:
    (tmp_path / "secret.xhtml").write_text("<p>secret</p>")
    data = epub({"a.xhtml": "<p>inside</p>"}, spine=["../../secret.xhtml", "a.xhtml", "/etc/passwd"])
    document = load(tmp_path, "a.epub", data)
    assert document.text == "inside\n"
    (warning,) = document.warnings
    assert "../../secret.xhtml, /etc/passwd" in warning
    with Archive(Source(data, "a.epub", "a.epub")) as book:
        assert book.resolve("OEBPS/book.opf", "text/%61.xhtml#x") == "OEBPS/text/a.xhtml"
        for outside in ("../../a", "/etc/passwd", "https://example.org/a", "..\\..\\a", ""):
            assert book.resolve("OEBPS/book.opf", outside) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (epub({}, spine=["gone.xhtml"]), "chapter OEBPS/gone.xhtml is missing"),
        (epub({}), "names no chapters"),
        (zipped({"META-INF/container.xml": "<container/>"}), "names no package"),
        (epub(BOOK)[:-60], "damaged"),
        (
            epub(
                BOOK,
                more={
                    "META-INF/encryption.xml": '<enc:EncryptedData xmlns:enc="x">'
                    '<enc:EncryptionMethod Algorithm="aes"/>'
                    '<enc:CipherReference URI="OEBPS/a.xhtml"/></enc:EncryptedData>'
                },
            ),
            "DRM",
        ),
        (epub({"a.xhtml": "<img src='a.png'/>"}), "without any text"),
    ],
)
def test_books_that_cannot_be_read(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(tmp_path, "a.epub", data)


def test_hidden_fonts_are_no_drm(tmp_path: Path) -> None:
    fonts = (
        '<EncryptedData><EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/>'
        '<CipherReference URI="OEBPS/a.xhtml"/></EncryptedData>'
    )
    assert "Ishmael" in load(tmp_path, "a.epub", epub(BOOK, more={"META-INF/encryption.xml": fonts})).text


def test_a_spine_of_any_length_is_read_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = epub(BOOK, spine=["a.xhtml", "b.xhtml", "unused.xhtml"])
    assert "cover" in load(tmp_path, "a.epub", data).text
    monkeypatch.setattr(epub_reader, "SPINE", 2)
    with pytest.raises(InputError, match="names 3 chapters; kvcli reads up to 2"):
        epub_reader.extract(Source(data, "a.epub", "a.epub"))


def test_a_bomb_is_told_while_it_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(chapters: dict[str, str]) -> None:
        epub_reader.extract(Source(epub(chapters), "a.epub", "a.epub"))

    monkeypatch.setattr(archive, "MEMBER", 1 << 20)
    with pytest.raises(InputError, match="unpacks to more than 1 MiB"):
        load({"a.xhtml": "<p>" + " " * (2 << 20) + "</p>"})
    monkeypatch.setattr(archive, "MEMBER", 128 << 20)
    monkeypatch.setattr(archive, "TOTAL", 1 << 20)
    chapters = {f"{i}.xhtml": "x" * 300_000 for i in range(5)}
    with pytest.raises(InputError, match="unpacks to more than"):
        load(chapters)


# --- DOCX ---


def test_headings_tables_and_tracked_changes(tmp_path: Path) -> None:
    row = "<w:tr>" + "".join(f"<w:tc>{paragraph(c)}</w:tc>" for c in ("ship", "tons")) + "</w:tr>"
    gone = "<w:p><w:del><w:r><w:delText>struck out</w:delText></w:r></w:del><w:r><w:t>stays</w:t></w:r></w:p>"
    body = paragraph("Whales", "Heading1") + paragraph("Words &amp; more") + f"<w:tbl>{row}</w:tbl>" + gone
    document = load(tmp_path, "a.docx", docx(body))
    assert document.text == "# Whales\n\nWords & more\n\nship | tons\n\nstays\n"
    assert document.spans[0].section == "Whales"


def test_pages_that_the_word_processor_noted(tmp_path: Path) -> None:
    second = "<w:p><w:r><w:lastRenderedPageBreak/><w:t>Two.</w:t></w:r></w:p>"
    document = load(tmp_path, "a.docx", docx(paragraph("One.") + second))
    assert document.pages == 2
    assert document.at(document.text.index("Two")).page == 2
    assert document.at(document.text.index("One")).page == 1


def test_entities_of_a_docx_are_not_expanded(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE w [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;">]>'
    with pytest.raises(InputError, match="declares entities"):
        load(tmp_path, "a.docx", docx(paragraph("&b;"), before=bomb))


def test_damaged_docx(tmp_path: Path) -> None:
    whole = docx(paragraph("text"))
    for data in (whole[:-50], docx("<w:p>"), zipped({"word/document.xml": f"<w:document {W}/>"})):
        with pytest.raises(InputError, match=r"damaged|without any text"):
            load(tmp_path, "a.docx", data)


def test_a_docx_of_many_levels_is_refused(tmp_path: Path) -> None:
    deep = "<w:tbl><w:tr><w:tc>" * 3000 + paragraph("x") + "</w:tc></w:tr></w:tbl>" * 3000
    with pytest.raises(InputError, match=r"nested too deeply|damaged"):
        load(tmp_path, "a.docx", docx(deep))


# --- Markdown ---


def test_markdown_is_unchanged_and_mapped(tmp_path: Path) -> None:
    text = "intro\n\n# One #\n\n```sh\n# no heading\n```\n\nTwo\n===\n\n## Deep\ntext\n"
    document = load(tmp_path, "a.md", text)
    assert document.text == text
    assert [(s.section, s.line) for s in document.spans] == [(None, 1), ("One", 3), ("Two", 9), ("Two › Deep", 12)]
    assert document.line(text.index("text")) == 13
    assert "".join(p.text for p in sections(text)) == text
