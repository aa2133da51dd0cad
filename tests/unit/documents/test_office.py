"""Slides, sheets, OpenDocument, RTF, mail and notebooks: what they show is in the text, and damage is one line."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import date, datetime
from email.message import EmailMessage
from html import escape
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcli.documents import mail, notebook, odf, pptx, rtf, xlsx
from kvcli.documents.document import Extract, Options, Source
from kvcli.errors import InputError, UsageError

READERS = {"pptx": pptx, "xlsx": xlsx, "odt": odf, "ods": odf, "odp": odf, "rtf": rtf, "eml": mail, "ipynb": notebook}
A = 'xmlns:a="urn:a" xmlns:p="urn:p" xmlns:r="urn:r"'
O = 'xmlns:office="urn:o" xmlns:text="urn:t" xmlns:table="urn:b" xmlns:draw="urn:d" xmlns:presentation="urn:p"'  # noqa: E741
WORD = st.text(st.sampled_from("abcXYZ0189äßжλ漢字,.;:!?()%€½"), min_size=1, max_size=8)


def archive(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return buffer.getvalue()


def text_of(found: Extract) -> str:
    return "".join(part.text for part in found.parts)


def extract(kind: str, data: bytes, **options: Any) -> Extract:
    found: Extract = READERS[kind].extract(Source(data, f"a.{kind}", f"a.{kind}", Options(**options)))
    return found


def paragraphs(*texts: str) -> str:
    return "".join(f"<a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p>" for text in texts)


def shape(*texts: str, place: str = "") -> str:
    holder = f'<p:nvSpPr><p:nvPr><p:ph type="{place}"/></p:nvPr></p:nvSpPr>' if place else ""
    return f"<p:sp>{holder}<p:txBody>{paragraphs(*texts)}</p:txBody></p:sp>"


def relations(**targets: str) -> str:
    rows = "".join(
        f'<Relationship Id="{name}" Type="x/{kind}" Target="{target}"/>'
        for name, (kind, target) in ((n, t.split(" ")) for n, t in targets.items())
    )
    return f'<Relationships xmlns="urn:rel">{rows}</Relationships>'


def slides(*shapes: str, notes: str = "") -> bytes:
    """A presentation whose slides are stored in reverse order."""
    members = {
        "_rels/.rels": relations(r1="officeDocument ppt/presentation.xml"),
        "ppt/presentation.xml": f"<p:presentation {A}><p:sldIdLst>"
        + "".join(f'<p:sldId id="{256 + i}" r:id="r{i}"/>' for i in range(len(shapes)))
        + "</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            **{f"r{i}": f"slide slides/slide{len(shapes) - i}.xml" for i in range(len(shapes))}
        ),
    }
    for i, inner in enumerate(shapes):
        name = f"slide{len(shapes) - i}.xml"
        members[f"ppt/slides/{name}"] = f"<p:sld {A}><p:cSld><p:spTree>{inner}</p:spTree></p:cSld></p:sld>"
        if notes and not i:
            members[f"ppt/slides/_rels/{name}.rels"] = relations(n="notesSlide ../notesSlides/n1.xml")
            tree = f"<p:spTree>{shape(notes, place='body')}{shape('7', place='sldNum')}</p:spTree>"
            members["ppt/notesSlides/n1.xml"] = f"<p:notes {A}>{tree}</p:notes>"
    return archive(members)


def workbook(rows: list[list[Any]], **formats: str) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Budget 2026"
    for row in rows:
        sheet.append(row)
    for cell, form in formats.items():
        sheet[cell].number_format = form
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def opened(body: str) -> bytes:
    content = f"<office:document {O}><office:body>{body}</office:body></office:document>"
    return archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content})


def message(text: str = "The lorry arrives at noon.\n", charset: str = "utf-8") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ann <ann@example.org>", "Bob", "Größe ✓"
    made.set_content(text, charset=charset)
    return made


SAMPLES = {
    "pptx": slides(shape("Results", place="title") + shape("Revenue grew"), shape("Thanks"), notes="Speak slowly."),
    "xlsx": workbook([["Item", "Cost"], ["Rent", 1200.5]]),
    "odt": opened('<office:text><text:h text:outline-level="1">Plan</text:h><text:p>Do it.</text:p></office:text>'),
    "ods": opened(
        '<office:spreadsheet><table:table table:name="One"><table:table-row><table:table-cell><text:p>4</text:p>'
        "</table:table-cell></table:table-row></table:table></office:spreadsheet>"
    ),
    "odp": opened("<office:presentation><draw:page><draw:frame><text:p>Hi</text:p></draw:frame></draw:page>"
                  "</office:presentation>"),
    "rtf": rb"{\rtf1\ansi\ansicpg1252 Caf\'e9 \b 12\b0  euros.\par Second \u8364? line.}",
    "eml": bytes(message()),
    "ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Plan\n", "Do it."]}]}).encode(),
}  # fmt: skip


# --- slides ---


def test_slides_are_pages_in_the_order_of_the_presentation() -> None:
    found = extract("pptx", SAMPLES["pptx"])
    assert found.pages == 2
    assert [(part.page, part.section) for part in found.parts] == [(1, None), (1, "Results"), (2, None)]
    text = text_of(found)
    assert text.index("Results") < text.index("Revenue") < text.index("Notes: Speak slowly.") < text.index("Thanks")
    assert "7" not in text  # the number on the page of notes
    only = extract("pptx", SAMPLES["pptx"], pages=((2, 2),))
    assert [part.page for part in only.parts] == [2]
    assert text_of(only) in text + "\n"
    with pytest.raises(UsageError, match="2 pages"):
        extract("pptx", SAMPLES["pptx"], pages=((3, 3),))


def test_furniture_is_left_out_and_pictures_are_counted() -> None:
    inner = shape("Footer", place="ftr") + shape("3", place="sldNum") + "<p:pic/>" + shape("Body")
    found = extract("pptx", slides(inner, "<p:pic/>"))
    assert "Footer" not in text_of(found)
    assert "2 pictures" in found.notes[0]
    assert found.without_text == [2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(WORD, min_size=2, max_size=3), min_size=1, max_size=4), st.lists(WORD, max_size=4))
def test_every_word_of_a_slide_is_in_its_text(table: list[list[str]], texts: list[str]) -> None:
    rows = "".join(
        "<a:tr>" + "".join(f"<a:tc><a:txBody>{paragraphs(c)}</a:txBody></a:tc>" for c in row) + "</a:tr>"
        for row in table
    )
    group = f"<p:grpSp>{''.join(shape(text) for text in texts)}</p:grpSp>"
    text = text_of(extract("pptx", slides(f"<p:graphicFrame><a:tbl>{rows}</a:tbl></p:graphicFrame>{group}")))
    for row in table:
        assert " | ".join(row) in text
    for word in texts:
        assert word in text.split("\n")


# --- sheets ---


def test_numbers_are_what_the_sheet_shows() -> None:
    row = [1200.5, 0.157, 0.1 + 0.2, date(2026, 3, 1), datetime(2026, 3, 1, 14, 30), True, "=A1*2", 12, 0.5]
    found = extract("xlsx", workbook([row], A1='"€"#,##0.00', B1="0.0%", H1='0 "kg"', I1="0%"))
    line = text_of(found).strip().split("\n")[-1]
    assert line == "€1200.50 | 15.7 % | 0.3 | 2026-03-01 | 2026-03-01 14:30 | TRUE | =A1*2 | 12 kg | 50 %"
    assert "1 result of a formula" in found.notes[0]
    assert found.parts[-1].section == "Budget 2026"


def test_hidden_sheets_are_counted_and_a_wrong_size_is_no_matter() -> None:
    book = openpyxl.Workbook()
    book.active.append(["shown"])
    hidden = book.create_sheet("Secret")
    hidden.sheet_state = "hidden"
    hidden.append(["unseen"])
    buffer = io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as before:
        members = {name: before.read(name).decode() for name in before.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    members[sheet] = members[sheet].replace('ref="A1"', 'ref="A1:XFD1048576"')
    found = extract("xlsx", archive(members))
    assert text_of(found).split() == ["#", "Sheet", "shown"]
    assert "1 hidden sheet" in found.notes[0]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(WORD.map(lambda w: f"w{w}"), min_size=1, max_size=3), min_size=1, max_size=4))
def test_every_cell_is_in_its_row(rows: list[list[str]]) -> None:
    text = text_of(extract("xlsx", workbook(rows)))
    assert text.strip().split("\n")[-len(rows) :] == [" | ".join(row) for row in rows]


# --- OpenDocument ---


def test_text_lists_tables_and_notes() -> None:
    body = (
        "<office:text><text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
        '<text:h text:outline-level="1">Plan</text:h><text:p>Two<text:s text:c="3"/>words'
        "<text:note><text:note-body><text:p>A note.</text:p></text:note-body></text:note> end"
        "<text:line-break/>next</text:p>"
        "<text:list><text:list-item><text:p>one</text:p></text:list-item><text:list-item><text:p>two</text:p>"
        "</text:list-item></text:list><table:table><table:table-row><table:table-cell><text:p>a</text:p>"
        '</table:table-cell><table:table-cell table:number-columns-repeated="2"><text:p>b</text:p></table:table-cell>'
        '<table:table-cell table:number-columns-repeated="16380"/></table:table-row>'
        '<table:table-row table:number-rows-repeated="1048570"><table:table-cell/></table:table-row></table:table>'
        "<text:p><draw:frame><draw:image/></draw:frame>last</text:p></office:text>"
    )
    found = extract("odt", opened(body))
    text = text_of(found)
    assert "gone" not in text
    assert "Two words (A note.) end\nnext" in text
    assert "- one\n- two" in text
    assert "a | b | b\n" in text
    assert text.endswith("last\n")
    assert found.parts[-1].section == "Plan"
    assert "1 picture" in found.notes[0]


def test_sheets_have_their_names_and_slides_their_pages() -> None:
    assert text_of(extract("ods", SAMPLES["ods"])) == "# One\n\n4\n"
    found = extract("odp", SAMPLES["odp"])
    assert (found.pages, found.parts[0].page, text_of(found)) == (1, 1, "[page 1]\n\nHi\n")


def test_an_encrypted_document_says_so() -> None:
    manifest = "<manifest:m xmlns:manifest='urn:m'><manifest:encryption-data/></manifest:m>"
    with pytest.raises(InputError, match="password"):
        extract("odt", archive({"mimetype": "x", "content.xml": "?", "META-INF/manifest.xml": manifest}))


# --- RTF, mail, notebooks ---


def test_rtf() -> None:
    assert text_of(extract("rtf", SAMPLES["rtf"])) == "Café 12 euros.\nSecond € line.\n"


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252"])
def test_mail_has_its_head_and_the_text_once(charset: str) -> None:
    made = message("Größe: 4 m²\n", charset)
    made.add_alternative("<p>Größe: 4 m²</p>", subtype="html")
    made.add_attachment(b"x", maintype="application", subtype="pdf", filename="a.pdf")
    found = extract("eml", bytes(made))
    assert text_of(found) == "From: Ann <ann@example.org>\nTo: Bob\nSubject: Größe ✓\n\nGröße: 4 m²\n"
    assert found.notes == ["a.eml: not read: 1 attachment"]


def test_mail_of_html_alone_and_of_a_charset_that_is_none() -> None:
    made = EmailMessage()
    made["Subject"] = "x"
    made.set_content("<p>The <b>lorry</b></p><script>no</script>", subtype="html")
    assert text_of(extract("eml", bytes(made))).split("\n")[-2] == "The lorry"
    data = bytes(message()).replace(b"utf-8", b"no-such-charset")
    assert "noon" in text_of(extract("eml", data))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("=?utf-8?q?J=C3?= =?utf-8?q?=BCrg?= Klein <j@k.de>", "Jürg Klein <j@k.de>"),
        ("a =?utf-8?b?4oKs?=\n b =?iso-8859-1?B?5Pb8?=", "a € b äöü"),
        ("=?no-such-charset?q?_z_?= Größe =?utf-8?b?!?=", "z Größe"),
        ('"M=?x" <a@b.c>', '"M=?x" <a@b.c>'),
        ("a@b.c, " * 900 + "last@b.c", "a@b.c, " * 900 + "last@b.c"),
    ],
)
def test_lines_of_the_head_of_a_mail_are_read_whole(written: str, shown: str) -> None:
    found = extract("eml", f"To: {written}\n\nx\n".encode())
    assert text_of(found) == f"To: {shown}\n\nx\n"


def test_mails_in_mails_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"a\.eml is nested too deeply"):
        extract("eml", b"Content-Type: message/rfc822\n\n" * 5_000)


def test_a_notebook_is_markdown_with_code_and_output() -> None:
    cells = [
        {"cell_type": "markdown", "source": "# Plan"},
        {"cell_type": "code", "source": "print('```')", "outputs": [
            {"output_type": "stream", "text": ["4\n"]},
            {"output_type": "display_data", "data": {"image/png": "x", "text/plain": "<Figure>"}},
            {"output_type": "error", "ename": "KeyError", "evalue": "'a'"}]},
    ]  # fmt: skip
    found = extract("ipynb", json.dumps({"cells": cells}).encode())
    text = text_of(found)
    assert "````python\nprint('```')\n````" in text
    assert "4" in text
    assert "KeyError: 'a'" in text
    assert "<Figure>" not in text
    assert "1 picture" in found.notes[0]
    assert found.parts[-1].section == "Plan"


# --- all of them ---


def read_or_refuse(kind: str, data: bytes) -> None:
    """Text, or ``InputError`` with one line that names the file; nothing else."""
    try:
        text = text_of(extract(kind, data))
    except InputError as error:
        text = error.message if f"a.{kind}" in error.message and "\n" not in error.message else None
    assert isinstance(text, str)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_sample_has_text(kind: str) -> None:
    assert text_of(extract(kind, SAMPLES[kind])).strip()


@pytest.mark.parametrize("kind", SAMPLES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_text_or_one_clear_error(kind: str, data: st.DataObject) -> None:
    """A file that is cut, or whose bytes are changed, gives text or ``InputError``, and nothing else."""
    whole = SAMPLES[kind]
    cut = data.draw(st.integers(0, len(whole)))
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    for damaged in (whole[:cut], whole[:at] + byte + whole[at + 1 :], whole[:at] + whole[at + 1 :]):
        read_or_refuse(kind, damaged)


@pytest.mark.parametrize("kind", ["pptx", "xlsx", "odt"])
def test_damage_inside_the_archive(kind: str) -> None:
    """Each member missing, empty, or cut in the middle."""
    with zipfile.ZipFile(io.BytesIO(SAMPLES[kind])) as file:
        members = {name: file.read(name).decode() for name in file.namelist()}
    for name, text in members.items():
        for changed in (None, "", text[: len(text) // 2], "<a/>"):
            left = (
                {**members, name: changed} if changed is not None else {k: v for k, v in members.items() if k != name}
            )
            read_or_refuse(kind, archive({k: v for k, v in left.items() if v is not None}))
