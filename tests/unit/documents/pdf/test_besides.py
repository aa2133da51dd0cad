"""What is on a page but not in its content: form fields, notes, comments, films, attached files, XFA forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcli.documents import Document
from kvcli.errors import InputError
from tests.unit.documents.pdf.sheets import PROSE, body, load, sheets, shown

TEXT = "".join(shown(line, 72, 400 - 14 * i) for i, line in enumerate(PROSE))


def form(tmp_path: Path, fields: dict[str, str], *, rotate: int = 0) -> Document:
    """A page with a label and a field beside it on each line; a field is the rest of its dictionary."""
    drawn = "".join(shown(label, 72, 700 - 30 * i) for i, label in enumerate(fields))
    objects = {
        1000 + i: f"<< /Type /Annot /Subtype /Widget /T (f{i}) /Rect [220 {696 - 30 * i} 420 {712 - 30 * i}] "
        f"/DA (/F 11 Tf 0 g) {field} >>".encode()
        for i, field in enumerate(fields.values())
    }
    names = " ".join(f"{n} 0 R" for n in objects)
    return load(
        tmp_path,
        sheets(
            [drawn],
            page=f"/Annots [{names}] /Rotate {rotate}",
            catalog=f"/AcroForm << /Fields [{names}] /NeedAppearances true /DA (/F 11 Tf 0 g) >>",
            objects=objects,
        ),
    )


FIELDS = {
    "Name of the captain:": ("/FT /Tx /V (Ines Duarte)", "Ines Duarte"),
    "Ship in two lines:": ("/FT /Tx /Ff 4096 /V (The Pequod\rof Nantucket)", "The Pequod"),
    "Insured:": ("/FT /Btn /V /Yes /AS /Yes", "☒"),
    "Steam:": ("/FT /Btn /V /Off /AS /Off", "☐"),
    "Port:": ("/FT /Ch /Ff 131072 /Opt [[(n) (Norway)] [(c) (Chile)]] /V (c)", "Chile"),
    "Cargo:": ("/FT /Ch /Opt [(coal) (salt) (oil)] /V (salt)", "salt"),
    "Not shown:": ("/FT /Tx /V (secret) /F 2", ""),
    "Password:": ("/FT /Tx /Ff 8192 /V (secret)", ""),
    "Left empty:": ("/FT /Tx", ""),
}


@pytest.mark.parametrize("rotate", [0, 180])
def test_values_of_fields_are_beside_their_labels(tmp_path: Path, rotate: int) -> None:
    document = form(tmp_path, {label: field for label, (field, _) in FIELDS.items()}, rotate=rotate)
    lines = [" ".join(line.split()) for line in body(document).splitlines()]
    for label, (_, value) in FIELDS.items():
        assert f"{label} {value}".strip() in lines, lines
    assert "of Nantucket" in document.text
    assert "secret" not in document.text


def annotated(tmp_path: Path, *entries: str) -> Document:
    objects = {
        1000 + i: f"<< /Type /Annot /Rect [72 {600 - 30 * i} 300 {620 - 30 * i}] {entry} >>".encode()
        for i, entry in enumerate(entries)
    }
    names = " ".join(f"{n} 0 R" for n in objects)
    return load(tmp_path, sheets([shown("A ship.", 72, 700) + TEXT], page=f"/Annots [{names}]", objects=objects))


def test_a_note_written_on_the_page_is_read_at_its_place(tmp_path: Path) -> None:
    lines = body(annotated(tmp_path, "/Subtype /FreeText /Contents (Ask the owner.) /DA (/F 11 Tf)")).splitlines()
    assert lines[0] == "A ship."
    assert lines[2] == "Ask the owner."


def test_comments_follow_their_page_and_films_are_counted(tmp_path: Path) -> None:
    document = annotated(
        tmp_path,
        "/Subtype /Highlight /Contents (Is this true?) /QuadPoints [72 610 200 610 72 600 200 600]",
        "/Subtype /Text /T (Ahab) /Contents (See\n page 4.)",
        "/Subtype /Text /Contents (Not to be seen.) /F 2",
        "/Subtype /Link /Contents (a link)",
        "/Subtype /Screen",
    )
    assert body(document).endswith("\n\n[comment: Is this true?]\n\n[comment by Ahab: See page 4.]")
    assert "seen" not in document.text
    assert [note.split(": ", 1)[1] for note in document.notes] == ["not read: 1 film"]


def test_attached_files_are_named(tmp_path: Path) -> None:
    objects = {
        1000: b"<< /Type /Filespec /F (rates.csv) /UF (rates.csv) /EF << /F 1001 0 R >> >>",
        1001: b"<< /Type /EmbeddedFile /Length 8 >>\nstream\na,b\n1,2\n\nendstream",
    }
    names = "/Names << /EmbeddedFiles << /Names [(rates.csv) 1000 0 R] >> >>"
    document = load(tmp_path, sheets([TEXT], catalog=names, objects=objects))
    assert "files within it were not read: rates.csv; save them with pdfdetach" in document.warnings[0]


def test_a_form_that_a_program_would_have_to_build_is_no_text(tmp_path: Path) -> None:
    xfa = {1000: b"<< /Length 0 >>\nstream\n\nendstream"}
    data = sheets(
        [shown("Please wait...", 72, 700)],
        catalog="/NeedsRendering true /AcroForm << /Fields [] /XFA 1000 0 R >>",
        objects=xfa,
    )
    with pytest.raises(InputError, match="dynamic XFA form") as caught:
        load(tmp_path, data)
    assert "print it" in (caught.value.hint or "")
