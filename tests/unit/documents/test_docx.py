"""DOCX: what Word shows is in the text, and what is left out is said."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kvcli.documents import docx as reader
from kvcli.documents.document import Extract, Source
from kvcli.documents.numbering import Numbering
from kvcli.errors import InputError
from tests.unit.documents.makers import RELATIONS, TYPES, W, docx, paragraph, zipped

NAMES = (
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape" '
    'xmlns:w14="http://schemas.microsoft.com/office/word/2010/wordml" '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
)
KIND = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def run(text: str, look: str = "") -> str:
    return f'<w:r><w:rPr>{look}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def par(*inner: str) -> str:
    return f"<w:p>{''.join(inner)}</w:p>"


def extract(body: str, more: Mapping[str, str | bytes] = {}, relations: Mapping[str, tuple[str, str]] = {}) -> Extract:
    """A document with this body, and with parts that it refers to by id: kind and name."""
    found = "".join(f'<Relationship Id="{i}" Type="{KIND}/{k}" Target="{n}"/>' for i, (k, n) in relations.items())
    related = {"word/_rels/document.xml.rels": f"<Relationships>{found}</Relationships>"} if relations else {}
    data = docx(f"<w:customXml {NAMES}>{body}</w:customXml>", more={**related, **more})
    return reader.extract(Source(data, "a.docx", "a.docx"))


def text(body: str, **more: Mapping[str, str | bytes]) -> str:
    return "".join(part.text for part in extract(body, **more).parts)


@pytest.mark.parametrize(
    "wrapped",
    [
        "<w:smartTag>{}</w:smartTag>",
        "<w:sdt><w:sdtPr><w:alias w:val='no'/></w:sdtPr><w:sdtContent>{}</w:sdtContent></w:sdt>",
        "<w:hyperlink r:id='x'>{}</w:hyperlink>",
        "<w:fldSimple w:instr=' AUTHOR '>{}</w:fldSimple>",
        "<w:ins>{}</w:ins>",
        "<w:moveTo>{}</w:moveTo>",
        "<w:bdo w:val='rtl'>{}</w:bdo>",
        "<w:dir w:val='rtl'>{}</w:dir>",
        "<w:customXml>{}</w:customXml>",
        "<w:sdt><w:sdtContent><w:smartTag>{}</w:smartTag></w:sdtContent></w:sdt>",
    ],
)
def test_words_in_a_wrapper_stay_in_their_sentence(wrapped: str) -> None:
    assert (
        text(par(run("The key of "), wrapped.format(run("Sigrid")), run(" is lost."))) == "The key of Sigrid is lost.\n"
    )


def test_a_text_box_follows_its_paragraph_and_is_read_once() -> None:
    box = f"<w:txbxContent>{par(run('Ring twice.'))}</w:txbxContent>"
    drawn = f"<w:drawing><wps:wsp><wps:txbx>{box}</wps:txbx></wps:wsp></w:drawing>"
    old = f"<w:pict><v:shape><v:textbox>{box}</v:textbox></v:shape></w:pict>"
    both = f"<mc:AlternateContent><mc:Choice>{drawn}</mc:Choice><mc:Fallback>{old}</mc:Fallback></mc:AlternateContent>"
    for shape in (drawn, old, both):
        assert (
            text(par(run("At the door. "), f"<w:r>{shape}</w:r>", run("Wait.")))
            == "At the door. Wait.\n\nRing twice.\n"
        )
    nested = old.replace("Ring twice.", "Outer.</w:t></w:r></w:p><w:p><w:r>" + old + "<w:t>Last.")
    assert text(par(run("Door."), f"<w:r>{nested}</w:r>")) == "Door.\n\nOuter.\n\nLast.\n\nRing twice.\n"


def math(inner: str) -> str:
    return f"<m:oMath>{inner}</m:oMath>"


def letter(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


@pytest.mark.parametrize(
    ("formula", "line"),
    [
        (f"<m:sSup><m:e>{letter('r')}</m:e><m:sup>{letter('2')}</m:sup></m:sSup>", "r^2"),
        (f"<m:sSub><m:e>{letter('x')}</m:e><m:sub>{letter('n+1')}</m:sub></m:sSub>", "x_(n+1)"),
        (f"<m:f><m:num>{letter('p-q')}</m:num><m:den>{letter('12')}</m:den></m:f>", "(p-q)/12"),
        (f"<m:rad><m:radPr/><m:deg/><m:e>{letter('2g')}</m:e></m:rad>", "√(2g)"),
        (f"<m:rad><m:deg>{letter('3')}</m:deg><m:e>{letter('z')}</m:e></m:rad>", "√(3&z)"),
        (
            f'<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub>{letter("i=1")}</m:sub><m:sup>{letter("n")}</m:sup>'
            f"<m:e>{letter('i')}</m:e></m:nary>",
            "∑_(i=1)^n i",
        ),
        (
            f'<m:d><m:dPr><m:begChr m:val="["/><m:endChr m:val="]"/></m:dPr><m:e>{letter("a")}</m:e></m:d>',
            "[a]",
        ),
        (f"<m:m><m:mr><m:e>{letter('1')}</m:e><m:e>{letter('0')}</m:e></m:mr></m:m>", "[1, 0]"),
        (f"<m:func><m:fName>{letter('sin')}</m:fName><m:e>{letter('t')}</m:e></m:func>", "sin t"),
        (f"<m:unheard><m:e>{letter('kept')}</m:e></m:unheard>", "kept"),
    ],
)
def test_equations_are_one_line(formula: str, line: str) -> None:
    assert text(par(run("Thus "), math(formula), run("."))) == f"Thus {line}.\n"


LEVELS = (
    ("decimal", "Section %1"),
    ("decimal", "%1.%2"),
    ("lowerLetter", "(%3)"),
    ("lowerRoman", "%4)"),
    ("upperRoman", "%5."),
)


def numbering(levels: tuple[tuple[str, str], ...] = LEVELS, more: str = "", start: int = 1) -> str:
    rows = "".join(
        f'<w:lvl w:ilvl="{i}"><w:start w:val="{start}"/><w:numFmt w:val="{k}"/><w:lvlText w:val="{t}"/></w:lvl>'
        for i, (k, t) in enumerate(levels)
    )
    return (
        f'<w:numbering {W}><w:abstractNum w:abstractNumId="7">{rows}</w:abstractNum>'
        f'<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>{more}</w:numbering>'
    )


def item(words: str, level: int, number: int = 1) -> str:
    look = f'<w:pPr><w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr></w:pPr>'
    return par(look, run(words))


def test_lists_have_their_numbers_through_the_document() -> None:
    body = item("Rent", 0) + item("It is 9.", 1) + item("On the third.", 1) + par(run("A remark.")) + item("Fees", 0)
    body += item("None,", 1) + item("but", 2) + item("post", 3) + item("fax", 3) + item("or", 2) + item("more", 4)
    assert text(body, more={"word/numbering.xml": numbering()}) == (
        "Section 1 Rent\n1.1 It is 9.\n1.2 On the third.\n\nA remark.\n\nSection 2 Fees\n2.1 None,\n(a) but\n"
        "i) post\nii) fax\n(b) or\nI. more\n"
    )


def test_a_list_that_begins_anew_and_one_that_goes_on() -> None:
    anew = '<w:num w:numId="2"><w:abstractNumId w:val="7"/><w:lvlOverride w:ilvl="0"><w:startOverride w:val="4"/>'
    anew += '</w:lvlOverride></w:num><w:num w:numId="3"><w:abstractNumId w:val="7"/></w:num>'
    parts = {"word/numbering.xml": numbering((("decimal", "%1."),), anew, start=2)}
    body = item("a", 0) + item("b", 0, 2) + item("c", 0, 2) + item("d", 0, 3)
    assert text(body, more=parts) == "2. a\n4. b\n5. c\n6. d\n"


def test_headings_numbered_by_their_style() -> None:
    style = (
        f'<w:styles {W}><w:style w:type="paragraph" w:styleId="Kop"><w:name w:val="heading 1"/><w:pPr><w:numPr>'
        '<w:numId w:val="1"/></w:numPr></w:pPr></w:style><w:style w:type="paragraph" w:styleId="Own"><w:basedOn '
        'w:val="Kop"/></w:style></w:styles>'
    )
    parts = {"word/styles.xml": style, "word/numbering.xml": numbering()}
    found = extract(paragraph("Scope", "Kop") + paragraph("Terms", "Own") + paragraph("text"), more=parts)
    assert [p.section for p in found.parts] == ["Section 1 Scope", "Section 2 Terms"]


def test_a_number_of_any_kind_counts_up() -> None:
    from lxml import etree

    for kind, marks in {
        "decimalZero": ["01", "02"],
        "upperLetter": ["A", "B"],
        "ordinal": ["1st", "2nd", "3rd", "4th"],
        "bullet": ["-", "-"],
        "none": ["", ""],
        "chicago": ["1", "2"],
    }.items():
        counter = Numbering(etree.fromstring(numbering(((kind, "%1"),))))
        assert [counter.next("1", 0) for _ in marks] == marks
    assert Numbering().next("1", 0) == ""


def test_form_fields_have_their_values() -> None:
    def old(form: str) -> str:
        begin = f'<w:r><w:fldChar w:fldCharType="begin"><w:ffData>{form}</w:ffData></w:fldChar></w:r>'
        code = "<w:r><w:instrText> FORM </w:instrText></w:r>"
        return f'{begin}{code}<w:r><w:fldChar w:fldCharType="end"/></w:r>'

    choice = "<w:ddList>{}<w:listEntry w:val='red'/><w:listEntry w:val='blue'/></w:ddList>"
    assert text(par(run("Hue: "), old(choice.format("<w:result w:val='1'/>")))) == "Hue: blue\n"
    assert text(par(run("Hue: "), old(choice.format("")))) == "Hue: red\n"
    assert text(par(run("Paid: "), old("<w:checkBox><w:checked/></w:checkBox>"))) == "Paid: ☒\n"
    assert text(par(run("Paid: "), old("<w:checkBox><w:checked w:val='0'/></w:checkBox>"))) == "Paid: ☐\n"
    symbol = '<w:r><w:sym w:font="Wingdings" w:char="F0FE"/></w:r>'
    assert text(par(run("Paid: "), symbol)) == "Paid: ☒\n"


def test_the_code_of_a_field_is_not_its_result() -> None:
    mark = '<w:r><w:fldChar w:fldCharType="{}"/></w:r>'
    begin, middle, end = (mark.format(k) for k in ("begin", "separate", "end"))
    inner = begin + "<w:r><w:instrText>NAME</w:instrText></w:r>" + middle + run("hidden") + end
    field = begin + "<w:r><w:instrText>IF</w:instrText></w:r>" + inner + middle + run("shown") + end
    assert text(par(run("It is "), field, run("."))) == "It is shown.\n"
    assert text(par(run("It is "), begin, run("kept"))) == "It is kept\n"


def test_merged_cells_keep_their_columns_and_rows() -> None:
    def cell(words: str, look: str = "") -> str:
        return f"<w:tc><w:tcPr>{look}</w:tcPr>{par(run(words) if words else '')}</w:tc>"

    first, goes_on = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    rows = [
        cell("Port") + cell("Ships", '<w:gridSpan w:val="2"/>') + cell("All"),
        cell("Oslo", first) + cell("May") + cell("3") + cell("8", first),
        cell("", goes_on) + cell("June") + cell("5") + cell("", goes_on),
        cell("Bergen") + cell("") + cell("7") + cell("7"),
    ]
    body = "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>"
    assert text(body) == "Port | Ships | | All\nOslo | May | 3 | 8\nOslo | June | 5 | 8\nBergen | | 7 | 7\n"


def test_breaks_part_words_and_soft_hyphens_do_not() -> None:
    pieces = ["<w:br/>", "<w:cr/>", '<w:br w:type="page"/>', "<w:tab/>", "<w:noBreakHyphen/>", "<w:softHyphen/>"]
    body = "".join(run(chr(97 + i)) + f"<w:r>{piece}</w:r>" for i, piece in enumerate(pieces))
    assert text(par(body, run("end"))) == "a\nb\nc\nd e-fend\n"
    cell = f"<w:tbl><w:tr><w:tc>{par(run('one'), '<w:r><w:br/></w:r>', run('two'))}</w:tc></w:tr></w:tbl>"
    assert text(cell) == "one two\n"


def test_superscripts_do_not_melt_into_numbers() -> None:
    raised, lowered = '<w:vertAlign w:val="superscript"/>', '<w:vertAlign w:val="subscript"/>'
    for before, look, script, after, shown in (
        ("10", raised, "9", " stars", "10^9 stars"),
        ("4", raised, "th", " pier", "4th pier"),
        ("H", lowered, "2", "O", "H2O"),
        ("x", lowered, "i", "", "x_i"),
        ("m", raised, "-1", "", "m^-1"),
        ("2", raised, "n", "", "2^n"),
        ("7", raised, "3", "1", "7^(3)1"),
    ):
        assert text(par(run(before), run(script, look), run(after))) == shown + "\n"


def test_what_is_left_out_is_said() -> None:
    ruby = f"<w:r><w:ruby><w:rt>{run('kana')}</w:rt><w:rubyBase>{run('kanji')}</w:rubyBase></w:ruby></w:r>"
    body = par(run("old", "<w:strike/>"), run("new"), run("gone", "<w:vanish/>"), run("kept", '<w:strike w:val="0"/>'))
    body += par(ruby, "<w:r><w:drawing><pic:pic xmlns:pic='x'/></w:drawing></w:r>", f"<w:del>{run('x')}</w:del>")
    comments = f"<w:comments {W}><w:comment>{par(run('Why?'))}</w:comment></w:comments>"
    header = f"<w:hdr {W}>{par(run('Draft'))}</w:hdr>"
    parts = {"word/comments.xml": comments, "word/header1.xml": header}
    related = {"a": ("comments", "comments.xml"), "b": ("header", "header1.xml")}
    found = extract(body, parts, related)
    assert found.parts[0].text == "newkept\n\nkanji\n"
    (note,) = found.notes
    for left in ("struck-out passage", "hidden passage", "phonetic guide", "picture", "tracked deletion", "comment"):
        assert f"1 {left}" in note
    assert "1 page header or footer" in note
    assert not extract(par(run("plain"))).notes


def test_notes_stand_behind_the_text_under_their_numbers() -> None:
    def notes(kind: str, words: str) -> str:
        return f'<w:{kind}s {W}><w:{kind} w:id="4">{par(run(words))}</w:{kind}></w:{kind}s>'

    body = par(run("One"), '<w:r><w:endnoteReference w:id="4"/></w:r>', run(" two"))
    body += par(run("three"), '<w:r><w:footnoteReference w:id="4"/></w:r>')
    more = {"word/endnotes.xml": notes("endnote", "of one"), "word/footnotes.xml": notes("footnote", "of three")}
    assert text(body, more=more) == "One[1] two\n\nthree[2]\n\n[1] of one\n\n[2] of three\n"
    again = par(run("One"), '<w:r><w:endnoteReference w:id="4"/></w:r>' * 2)
    assert text(again, more=more) == "One[1][1]\n\n[1] of one\n"
    assert "the text of note [1] is missing" in extract(body).warnings[0]


def test_a_comment_follows_the_paragraph_that_it_is_about() -> None:
    said = "".join(
        f'<w:comment w:id="{i}" w:author="Ines">{par(run(f"Why {i}?"))}{par(run("Ask."))}</w:comment>' for i in (4, 5)
    )
    more = {"word/comments.xml": f"<w:comments {W}>{said}</w:comments>"}
    body = par(run("One"), '<w:r><w:commentReference w:id="4"/></w:r>', run(" two")) + par(run("three"))
    assert text(body, more=more) == "One two\n\n[comment by Ines: Why 4? Ask.]\n\nthree\n"
    assert "1 comment" in extract(body, more).notes[0]


def test_embedded_parts_are_read_or_named() -> None:
    parts: dict[str, str | bytes] = {
        "word/a.html": "<h2>Inner</h2><p>page</p>",
        "word/b.docx": docx(paragraph("inner document")),
        "word/c.txt": "plain",
        "word/d.rtf": "{\\rtf1 no}",
    }
    related = {name[5]: ("aFChunk", name[5:]) for name in parts}
    body = par(run("Before.")) + "".join(f'<w:altChunk r:id="{i}"/>' for i in related) + par(run("After."))
    found = extract(body, parts, related)
    shown = "".join(p.text for p in found.parts)
    assert shown == "Before.\n\n## Inner\n\npage\n\ninner document\n\nplain\n\nAfter.\n"
    assert found.warnings == ["a.docx: it embeds word/d.rtf, which was not read"]


def test_a_document_in_itself_ends() -> None:
    inner = docx('<w:altChunk xmlns:r="r" r:id="a"/>' + paragraph("deep"))
    for _ in range(6):
        link = f'<Relationships><Relationship Id="a" Type="{KIND}/aFChunk" Target="a.docx"/></Relationships>'
        more = {"word/a.docx": inner, "word/_rels/document.xml.rels": link}
        inner = docx(f'<w:altChunk xmlns:r="{KIND}" r:id="a"/>' + paragraph("deep"), more=more)
    found = reader.extract(Source(inner, "a.docx", "a.docx"))
    assert "missing or not read" in found.warnings[0]


def test_parts_by_other_names() -> None:
    body = f"<w:document {W}><w:body>{paragraph('found')}</w:body></w:document>"
    named = TYPES.replace("document.xml", "main7.xml")
    for members in (
        {
            "[Content_Types].xml": named,
            "_rels/.rels": RELATIONS.replace("document.xml", "main7.xml"),
            "word/main7.xml": body,
        },
        {"[Content_Types].xml": named, "word/main7.xml": body},
        {"[Content_Types].xml": TYPES, "_rels\\.rels": RELATIONS, "word\\document.xml": body},
        {"[Content_Types].xml": TYPES, "_rels/.rels": RELATIONS.replace("word/", "/word/"), "word/document.xml": body},
    ):
        assert reader.extract(Source(zipped(members), "a.docx", "a.docx")).parts[0].text == "found\n"
    with pytest.raises(InputError, match="damaged"):
        reader.extract(Source(zipped({"[Content_Types].xml": TYPES}), "a.docx", "a.docx"))
