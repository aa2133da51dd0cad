"""What a PDF holds beside its pages: the files of a portfolio, and the form of a dynamic XFA form."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcli.documents import Document
from kvcli.documents.pdf import inside
from tests.unit.documents import makers
from tests.unit.documents.makers import Page, docx, lines, paragraph
from tests.unit.documents.pdf.sheets import load, sheets, shown

PAPER = makers.pdf([Page(lines(["The ship is old."])), Page(lines(["The fare is 900."]))])


def holding(files: dict[str, bytes], *, portfolio: bool = True) -> bytes:
    """A PDF of one page with files within it."""
    objects: dict[int, bytes] = {}
    for i, (name, data) in enumerate(files.items()):
        file = f"/F ({name}) /UF ({name}) /EF << /F {1001 + 2 * i} 0 R >>"
        objects[1000 + 2 * i] = f"<< /Type /Filespec {file} >>".encode()
        head = b"<< /Type /EmbeddedFile /Length %d >>\nstream\n" % len(data)
        objects[1001 + 2 * i] = head + data + b"\nendstream"
    names = " ".join(f"({name}) {1000 + 2 * i} 0 R" for i, name in enumerate(files))
    catalog = f"{'/Collection << /View /T >>' * portfolio} /Names << /EmbeddedFiles << /Names [{names}] >> >>"
    return sheets([shown("This is the cover.", 72, 700)], catalog=catalog, objects=objects)


FILES = {
    "lease.docx": docx(paragraph("The lease ends in May.")),
    "tariff.pdf": PAPER,
    "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "note.txt": b"A note.",
}


def test_the_files_of_a_portfolio_are_read_and_cited_by_name(tmp_path: Path) -> None:
    document = load(tmp_path, holding(FILES))
    assert document.text == (
        "[page 1]\nThis is the cover.\n\n=== lease.docx ===\n\nThe lease ends in May.\n\n=== tariff.pdf ===\n\n"
        "[page 1]\nThe ship is old.\n\n[page 2]\nThe fare is 900.\n\n=== note.txt ===\n\nA note.\n"
    )
    fare = document.at(document.text.index("fare"))
    assert (fare.page, fare.section) == (None, "tariff.pdf › p. 2")
    (warning,) = document.warnings
    assert warning.endswith("photo.png is a PNG image: an image without text")


def test_attached_files_and_portfolios_in_portfolios_are_named_only(tmp_path: Path) -> None:
    for data in (holding(FILES, portfolio=False), holding({"inner.pdf": holding(FILES)})):
        document = load(tmp_path, data)
        assert "lease ends" not in document.text
        assert "not read: lease.docx, tariff.pdf, photo.png, note.txt; save them with" in document.warnings[0]


def test_a_portfolio_is_read_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdfium2

    document = pypdfium2.PdfDocument(holding(FILES))
    assert [file["file"] for file in inside.files(document)] == list(FILES)
    monkeypatch.setattr(inside, "LARGEST", 100)
    assert [file["file"] for file in inside.files(document)] == ["photo.png", "note.txt"]
    monkeypatch.setattr(inside, "TOTAL", 10)
    assert [file["file"] for file in inside.files(document)] == ["note.txt"]


def xfa(tmp_path: Path, *packets: str) -> Document:
    """A PDF whose page says to wait, with the parts of a form."""
    objects = {
        1000 + i: b"<< /Length %d >>\nstream\n%s\nendstream" % (len(packet.encode()), packet.encode())
        for i, packet in enumerate(packets)
    }
    listed = " ".join(f"(p{n}) {n} 0 R" for n in objects)
    catalog = f"/NeedsRendering true /AcroForm << /Fields [] /XFA [{listed}] >>"
    return load(tmp_path, sheets([shown("Please wait...", 72, 700)], catalog=catalog, objects=objects))


TEMPLATE = """<template xmlns="http://www.xfa.org/schema/xfa-template/3.3/"><subform name="form1">
<draw><value><text>Application for a berth</text></value></draw>
<field name="Ship"><caption><value><text>Name of the ship:</text></value></caption></field>
<field name="Crew"><caption><value><text>Crew</text></value></caption></field>
<field name="Mate"><caption><value><text>Mate</text></value></caption></field>
<field name="Mate"><caption><value><text>Second mate</text></value></caption></field>
<field name="Port"><value><text>Bergen</text></value></field>
<draw><value><exData><body xmlns="http://www.w3.org/1999/xhtml"><p>Sign <b>below</b>.</p></body></exData></value></draw>
</subform></template>"""
DATA = """<xfa:datasets xmlns:xfa="http://www.xfa.org/schema/xfa-data/1.0/"><xfa:data><form1>
<Ship>Pequod</Ship><Mate>Starbuck</Mate><Mate>Stubb</Mate><Owner>Peleg</Owner><Crew/>
</form1></xfa:data></xfa:datasets>"""


def test_a_form_that_a_program_would_have_to_build_gives_its_words_and_values(tmp_path: Path) -> None:
    document = xfa(tmp_path, TEMPLATE, DATA)
    told = ["Application for a berth", "Name of the ship: Pequod", "Crew", "Mate: Starbuck", "Second mate: Stubb"]
    told += ["Port: Bergen", "Sign below.", "Owner: Peleg"]
    assert document.text == "[page 1]\n" + "\n\n".join(told) + "\n"
    assert "dynamic XFA form" in document.warnings[0]


@pytest.mark.parametrize("damage", ["<template>", "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]><a>&b;</a>"])
def test_damaged_packets_leave_the_others(tmp_path: Path, damage: str) -> None:
    assert xfa(tmp_path, damage, DATA).text.endswith("Ship: Pequod\n\nMate: Starbuck\n\nMate: Stubb\n\nOwner: Peleg\n")
