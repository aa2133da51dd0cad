"""The law of extraction: every visible character of a document is in its text, or a note counts what is not.

The documents are drawn; what they show is counted by parsers that the readers do not use for it.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from html.parser import HTMLParser
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from kvcli.documents import docx as docx_reader
from kvcli.documents import epub as epub_reader
from kvcli.documents import html as html_reader
from kvcli.documents.document import Extract, Source
from tests.unit.documents import makers
from tests.unit.documents.makers import W

M = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
WORDS = st.text(st.sampled_from("abcXYZ0123456789äßжλ漢字,.;:!?()%€½−±"), min_size=1, max_size=8)


def characters(text: str) -> Counter[str]:
    return Counter(c for c in text if not c.isspace())


def holds(found: Extract, shown: str) -> None:
    """All characters of ``shown`` are in the text, as often as they are shown."""
    text = "".join(part.text for part in found.parts)
    assert not characters(shown) - characters(text)


# --- DOCX ---

LOOKS = [
    "",
    "<w:b/>",
    '<w:vertAlign w:val="superscript"/>',
    '<w:vertAlign w:val="subscript"/>',
    '<w:strike w:val="false"/>',
    "<w:strike/>",
    "<w:vanish/>",
]


@st.composite
def runs(draw: st.DrawFn) -> str:
    return f"<w:r><w:rPr>{draw(st.sampled_from(LOOKS))}</w:rPr><w:t>{escape(draw(WORDS))}</w:t></w:r>"


def _wrapped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    wrappers = st.sampled_from(
        [
            "<w:smartTag>{}</w:smartTag>",
            "<w:hyperlink>{}</w:hyperlink>",
            "<w:sdt><w:sdtPr/><w:sdtContent>{}</w:sdtContent></w:sdt>",
            "<w:ins>{}</w:ins>",
            "<w:del>{}</w:del>",
            "<w:fldSimple>{}</w:fldSimple>",
            "<w:r><w:txbxContent><w:p>{}</w:p></w:txbxContent></w:r>",
            "<w:r><w:ruby><w:rubyBase>{}</w:rubyBase></w:ruby></w:r>",
            "<w:unheard>{}</w:unheard>",
        ]
    )
    formula = WORDS.map(escape).map(lambda t: f"<m:oMath><m:f><m:num><m:r><m:t>{t}</m:t></m:r></m:num></m:f></m:oMath>")
    return st.builds(lambda w, parts: w.format("".join(parts)), wrappers, st.lists(inner, max_size=3)) | formula


PARAGRAPHS = st.lists(st.recursive(runs(), _wrapped, max_leaves=6), max_size=4).map(
    lambda r: f"<w:p>{''.join(r)}</w:p>"
)
SPANS = ["", '<w:gridSpan w:val="2"/>', '<w:vMerge w:val="restart"/>']


def _table(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    cell = st.builds(lambda s, c: f"<w:tc><w:tcPr>{s}</w:tcPr>{c}</w:tc>", st.sampled_from(SPANS), inner)
    row = st.lists(cell, min_size=1, max_size=3).map(lambda c: f"<w:tr>{''.join(c)}</w:tr>")
    return st.lists(row, min_size=1, max_size=3).map(lambda r: f"<w:tbl>{''.join(r)}</w:tbl>")


BODIES = st.lists(st.recursive(PARAGRAPHS, _table, max_leaves=5), min_size=1, max_size=4).map("".join)


def word_shows(xml: str) -> tuple[str, Counter[str]]:
    """What Word shows of a document, and what of it is struck out, hidden or deleted, by kind."""
    shown: list[str] = []
    left: Counter[str] = Counter()

    def walk(node: ElementTree.Element) -> None:
        name = node.tag.rpartition("}")[2]
        if name == "del":
            left["tracked deletion"] += 1
            return
        if name == "r" and (look := node.find("{*}rPr")) is not None:
            off = [k for k, v in (("vanish", "hidden passage"), ("strike", "struck-out passage")) if _on(look, k) and v]
            if off:
                left["hidden passage" if off[0] == "vanish" else "struck-out passage"] += 1
                return
        if name == "t":
            shown.append(node.text or "")
        for child in node:
            walk(child)

    walk(ElementTree.fromstring(xml))
    return "".join(shown), left


def _on(look: ElementTree.Element, name: str) -> bool:
    child = look.find(f"{{*}}{name}")
    return child is not None and not any(v == "false" for v in child.attrib.values())


@settings(max_examples=50, deadline=None)
@given(BODIES)
def test_a_docx_holds_what_word_shows(body: str) -> None:
    found = docx_reader.extract(Source(makers.docx(f"<w:customXml {M}>{body}</w:customXml>"), "a.docx", "a.docx"))
    shown, left = word_shows(f"<w:body {W} {M}>{body}</w:body>")
    holds(found, shown)
    said = "".join(found.notes)
    for kind, n in left.items():
        assert f"{n:,} {kind}" in said


# --- HTML and EPUB ---

INLINE = ["b", "i", "span", "a", "em", "code", "sup", "sub", "label", "mark", "x-own", "button", "q"]
BLOCK = [
    "div",
    "p",
    "section",
    "blockquote",
    "h2",
    "pre",
    "ul",
    "ol",
    "li",
    "dl",
    "dd",
    "figure",
    "form",
    "details",
    "table",
]
GONE = ["script", "style", "template", "s", "del", "rt", "title"]


def _element(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def build(tag: str, parts: list[str], close: bool) -> str:
        if tag == "table":
            parts = [f"<tr><td>{p}</td></tr>" for p in parts]
        return f"<{tag}>{''.join(parts)}" + (f"</{tag}>" if close or tag in ("table", "pre") else "")

    tags = st.sampled_from(INLINE + BLOCK)
    shown = st.builds(build, tags, st.lists(inner, max_size=4), st.integers(0, 5).map(bool))
    gone = st.builds(lambda t, w: f"<{t}>{escape(w)}</{t}>", st.sampled_from(GONE), WORDS)
    return shown | gone | st.sampled_from(["<br>", "<hr>", "<!-- no -->", "<img>", "</b>", "</div>"])


PAGES = st.lists(st.recursive(WORDS.map(escape), _element, max_leaves=25), min_size=1, max_size=5).map("".join)


class Shown(HTMLParser):
    """The words of a page that are not in an element that shows none."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.gone: list[str] = []

    def handle_starttag(self, tag: str, _attributes: object) -> None:  # type: ignore[override]
        if tag in GONE:
            self.gone.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.gone:
            self.gone.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self.gone:
            self.shown.append(data)


@settings(max_examples=100, deadline=None)
@given(PAGES)
def test_a_page_holds_what_its_elements_hold(page: str) -> None:
    parser = Shown()
    parser.feed(page)
    parser.close()
    shown = "".join(parser.shown)
    whole = f"<!doctype html><html><head><title>t</title></head><body>{page}</body></html>"
    for markup in (page, whole):
        data = f'<meta charset="utf-8">{markup}'.encode()
        holds(html_reader.extract(Source(data, "a.html", "a.html")), shown)
    book = makers.epub({"a.xhtml": page, "b.xhtml": "<p>end</p>"})
    holds(epub_reader.extract(Source(book, "a.epub", "a.epub")), shown)
