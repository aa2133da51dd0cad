"""HTML and XHTML: what a browser shows is in the text, and what is left out is said."""

from __future__ import annotations

import pytest

from kvcli.documents import epub as epub_reader
from kvcli.documents import html
from kvcli.documents.document import Extract, Source
from kvcli.documents.markup import DEPTH, tidied
from tests.unit.documents.makers import epub, zipped


def extract(markup: str | bytes, name: str = "a.html") -> Extract:
    data = markup if isinstance(markup, bytes) else f'<meta charset="utf-8">{markup}'.encode()
    return html.extract(Source(data, name, name))


def text(markup: str | bytes, name: str = "a.html") -> str:
    return "".join(part.text for part in extract(markup, name).parts).rstrip("\n")


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("<ol start=3><li>a<li>b</ol>", "3. a\n4. b"),
        ("<ol type=I start=4><li>a<li>b</ol>", "IV. a\nV. b"),
        ("<ol type=A><li>a<li value=27>b</ol>", "A. a\nAA. b"),
        ("<ol reversed><li>a<li>b<li>c</ol>", "3. a\n2. b\n1. c"),
        ("<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>", "1. a\n\nmore\n\n2. b"),
        ("<ul><li>a<ol start=9><li>b</ol></ul>", "- a\n\n9. b"),
        ("<ol start=x><li>a</ol>", "1. a"),
    ],
)
def test_lists_have_the_numbers_that_they_show(markup: str, shown: str) -> None:
    assert text(markup) == shown


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("<h3><button>Who pays?</button></h3><p>You.", "### Who pays?\n\nYou."),
        ("<details><summary>Who?</summary>You.</details>", "Who?\nYou."),
        ("<dialog open>Shut.</dialog><dialog>no</dialog>", "Shut."),
        ("<x-a><template shadowrootmode=open><b>In</b></template></x-a> out<template>no</template>", "In\nout"),
        ("<iframe srcdoc='&lt;p>In &amp;amp; out'></iframe>after", "In & out\n\nafter"),
        ("<svg><title>no</title><g><text>North<tspan> pole</tspan></text></g><desc>no</desc></svg>", "North pole"),
        ("<svg><foreignObject><p>Words</p></foreignObject></svg>", "Words"),
        ("<q>Go</q>, he said", "“Go”, he said"),
        ("Unter&shy;neh<wbr>men", "Unternehmen"),
        ("<xmp><b></xmp>", "<b>"),
        ("a < b <3 & c", "a < b <3 & c"),
    ],
)
def test_what_a_browser_shows_is_read(markup: str, shown: str) -> None:
    assert text(markup) == shown


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("<label>Name <input value='Sigrid Aas'></label>", "Name Sigrid Aas"),
        ("Paid <input type=checkbox checked> Sent <input type=radio>", "Paid ☒ Sent ☐"),
        ("Key <input type=hidden value=no><input type=password value=no>", "Key"),
        ("<textarea>two\n<b>lines</textarea>", "two <b>lines"),
        ("Hue <select><option>red<option selected>blue</select>", "Hue blue"),
        ("Hue <select><optgroup><option>red</optgroup><option>blue</select>", "Hue red"),
        ("Hue <select multiple><option selected>a<option>b<option selected>c</select>", "Hue a, c"),
        ("<input type=submit value='Send it'>", "Send it"),
    ],
)
def test_forms_have_their_values(markup: str, shown: str) -> None:
    assert text(markup) == shown


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("<mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup>", "E=mc^2"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>2</mn></mfrac>", "(a+b)/2"),
        ("<msqrt><mn>2</mn><mi>g</mi></msqrt>", "√(2g)"),
        ("<mroot><mi>z</mi><mn>3</mn></mroot>", "√(3&z)"),
        ("<munderover><mo>∑</mo><mi>i</mi><mi>n</mi></munderover>", "∑_i^n"),
        ("<semantics><mi>x</mi><annotation>no</annotation></semantics>", "x"),
        ("<mtable><mtr><mtd>1</mtd><mtd>0</mtd></mtr><mtr><mtd>0</mtd><mtd>1</mtd></mtr></mtable>", "[1, 0; 0, 1]"),
    ],
)
def test_formulas_are_one_line(markup: str, shown: str) -> None:
    assert text(f"Let <math>{markup}</math>.") == f"Let {shown}."


def test_superscripts_do_not_melt_into_numbers() -> None:
    for markup, shown in {
        "7 × 10<sup>9</sup> stars": "7 × 10^9 stars",
        "the 4<sup>th</sup> pier": "the 4th pier",
        "41<sup>3</sup> million": "41^3 million",
        "as said<sup>[2]</sup>": "as said[2]",
        "CO<sub>2</sub> and x<sub>n+1</sub>": "CO2 and x_(n+1)",
        "<sup>1</sup> a note": "1 a note",
    }.items():
        assert text(markup) == shown


BODY = "<p class='a b'>one</p><p id=c>two</p><span class=a>three</span><p>four of the words that are always here"


@pytest.mark.parametrize(
    ("sheet", "gone"),
    [
        (".a{display:none}", {"one", "three"}),
        ("/* .x{} */ p.a , #c { color: red; DISPLAY : none !important }", {"one", "two"}),
        ("@import url(x); #c{visibility:hidden}", {"two"}),
        ("@media screen { #c{display:none} } @media print { .a{display:none} }", {"two"}),
        ("@media (max-width: 9em) { p{color:red} .a{display:none} } .b{display:none}", {"one"}),
        (".a{display:none} @media (max-width: 9em) { .open .a{display:block} }", set()),
        ("p{display:none} div .a{display:none} .a:hover{display:none} .b + #c{display:none}", set()),
        (".z{display:none}", set()),
        ("{{{ .a{display:none", set()),
        ("</style><style media='print'>.a{display:none}", set()),
        ("</style><style media=screen>.a{display:none}", {"one", "three"}),
        (".b{display:none}}}} #c{display:none}", {"one", "two"}),
    ],
)
def test_what_a_style_sheet_hides_is_not_read(sheet: str, gone: set[str]) -> None:
    found = extract(f"<style>{sheet}</style>{BODY}")
    words = {word for word in ("one", "two", "three", "four") if word in "".join(p.text for p in found.parts)}
    assert words == {"one", "two", "three", "four"} - gone
    assert bool(found.notes) == bool(gone)
    for note in found.notes:
        assert f"{len(gone)} hidden passage" in note


def test_a_page_that_its_sheet_hides_altogether_is_shown_by_a_script_and_read() -> None:
    found = extract(
        "<style>#page{display:none}</style><p>Wait.</p><div id=page><script>f()</script><h1>News</h1><p>The ship came."
    )
    assert "".join(p.text for p in found.parts) == "Wait.\n\n# News\n\nThe ship came.\n"
    assert not found.notes


def test_cells_keep_their_columns_and_rows() -> None:
    markup = "<table><tr><th>Port<th colspan=2>Ships<th>All<tr><td rowspan=2>Oslo<td>May<td>3<td rowspan=2>8"
    markup += "<tr><td>June<td>5<tr><td>Bergen<td><td>7<td>7</table>"
    assert text(markup) == "Port | Ships | | All\nOslo | May | 3 | 8\nOslo | June | 5 | 8\nBergen | | 7 | 7"
    long = "word " * 40
    assert text(f"<table><tr><td rowspan=2>{long}<td>a<tr><td>b</table>") == f"{long.strip()} | a\n| b"


def test_what_is_left_out_is_said() -> None:
    found = extract("<s>9</s> 8 <del>x</del><img><ruby>kanji<rt>kana</rt></ruby><iframe src=x></iframe><video></video>")
    assert found.parts[0].text == "8 kanji\n"
    (note,) = found.notes
    for left in ("2 struck-out passages", "1 picture", "1 phonetic guide", "1 embedded page", "1 video"):
        assert left in note
    assert not extract("<p>plain").notes


@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1252", "utf-16", "koi8-r", "x-unheard"])
def test_valid_utf8_is_utf8_whatever_is_declared(declared: str) -> None:
    words = "Größe, Ωμέγα, 40 €"
    assert text(f'<meta charset="{declared}"><p>{words}'.encode()) == words


def test_names_of_encodings_mean_what_they_mean_on_the_web() -> None:
    for declared, encoding, words in (
        ("shift_jis", "cp932", "①担当：髙橋㈱"),
        ("gb2312", "gb18030", "朱镕基说"),
        ("iso-8859-1", "cp1252", "“40 €”"),
        ("iso-8859-9", "cp1254", "altıda “çıktı”"),
        ("euc-kr", "cp949", "똠방각하"),
    ):
        data = f'<meta http-equiv="Content-Type" content="text/html; charset={declared}"><p>{words}'.encode(encoding)
        assert text(data) == words, declared
    assert text('<meta charset="gbk"><p>联通'.encode("gb18030")) == "联通"  # valid as UTF-8 by accident


def test_xhtml_is_read_by_its_own_rules() -> None:
    body = '<p><![CDATA[a < b & c]]></p><script/><p>two<a id="x"/> three</p><?php <p>no</p> ?><title/><p>four</p>'
    page = f'<?xml version="1.0"?><!DOCTYPE html [<!ENTITY a "x">]><html xmlns="http://www.w3.org/1999/xhtml">{body}</html>'
    shown = "a < b & c\n\ntwo three\n\nfour"
    assert text(page.encode(), "a.xhtml") == shown
    assert text(page.encode(), "a.html") == shown
    assert "".join(p.text for p in _book(body).parts).rstrip() == shown


def _book(body: str) -> Extract:
    return epub_reader.extract(Source(epub({"a.xhtml": body}), "a.epub", "a.epub"))


def test_the_tree_is_shallow_and_holds_all_words() -> None:
    deep = "".join(f"<div><span>w{i} </span>" for i in range(3 * DEPTH))
    assert text(deep).split() == [f"w{i}" for i in range(3 * DEPTH)]
    assert tidied(deep).count("<div>") <= DEPTH
    assert tidied("<x><div></x></y></div>") == "<x><div></div></x>"


# --- EPUB ---


def package(items: str, spine: str, **members: str) -> Extract:
    chapters = {f"OEBPS/{k}": f"<html><body><p>{v}</p></body></html>" for k, v in members.items()}
    refs = "".join(f'<itemref idref="{i}"/>' for i in spine.split())
    opf = f'<package xmlns="o"><manifest>{items}</manifest><spine>{refs}</spine></package>'
    container = '<container><rootfiles><rootfile\nfull-path="OEBPS/b.opf"/></rootfiles></container>'
    data = zipped({"META-INF/container.xml": container, "OEBPS/b.opf": opf, **chapters})
    return epub_reader.extract(Source(data, "a.epub", "a.epub"))


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("one%20two.xhtml", "one two.xhtml"),
        ("one%20two.xhtml", "one%20two.xhtml"),
        ("one two.xhtml", "one%20two.xhtml"),
        ("Text/One.xhtml", "text/one.xhtml"),
        ("caf\u00e9.xhtml", "cafe\u0301.xhtml"),
        ("./x/../one.xhtml#top", "one.xhtml"),
        ("text\\one.xhtml", "text/one.xhtml"),
    ],
)
def test_names_that_differ_in_spelling_mean_the_chapter_that_is_there(href: str, name: str) -> None:
    found = package(
        f'<opf:item xmlns:opf="o"\n\tid="a"\r\nhref="{href}" media-type="application/xhtml+xml"/>',
        "a",
        **{name: "read"},
    )
    assert found.parts[0].text == "read\n"
    assert not found.warnings


def test_a_chapter_that_is_missing_is_named_and_the_others_are_read() -> None:
    items = "".join(f'<item id="{i}" href="{i}.xhtml" media-type="application/xhtml+xml"/>' for i in "abc")
    found = package(items, "a b c", **{"a.xhtml": "one", "c.xhtml": "three"})
    assert found.parts[0].text == "one\n\nthree\n"
    assert "OEBPS/b.xhtml" in found.warnings[0]
