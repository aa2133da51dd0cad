"""Text of a layer that is switched off is not read, and that is said; all other text is."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from tests.unit.documents.makers import _stream
from tests.unit.documents.pdf.sheets import PROSE, load, sheets, shown

BODY = "".join(shown(line, 72, 700 - 14 * i) for i, line in enumerate(PROSE))
OFF, ON = "1000 0 R", "1001 0 R"
GROUPS = {
    1000: b"<< /Type /OCG /Name (Prices) >>",
    1001: b"<< /Type /OCG /Name (Prices) >>",  # another group of the same name, which is on
    1002: b"<< /Type /OCG /Name (Screen) /Usage << /View << /ViewState /OFF >> >> >>",
}
CATALOG = "/OCProperties << /OCGs [1000 0 R 1001 0 R 1002 0 R] /D << /OFF [1000 0 R] {} >> >>"


def member(entries: str) -> bytes:
    return f"<< /Type /OCMD {entries} >>".encode()


def file(group: str = OFF, more: str = "", objects: dict[int, bytes] | None = None, page: str = "") -> bytes:
    """A page with PROSE, the sum 900 in a layer, and the sum 700 after it."""
    layer = "/OC /L BDC\n" + shown("The fee is 900.", 72, 500) + "EMC\n"
    resources = f"/Properties << /L {group} >> /XObject << /X 1010 0 R >>"
    form = b"/Type /XObject /Subtype /Form /BBox [0 0 600 800] /Resources << /Font << /F 10 0 R >> >>"
    extra = {1010: _stream(form, b""), **GROUPS, **(objects or {})}
    content = BODY + layer + "/X Do\n" + shown("The fee is 700.", 72, 480)
    return sheets([content], page=page, resources=resources, catalog=CATALOG.format(more), objects=extra)


@pytest.mark.parametrize(
    ("group", "hides"),
    [
        (OFF, True),
        (ON, False),
        (member(f"/OCGs {OFF}"), True),
        (member(f"/OCGs [{OFF} {ON}]"), False),
        (member(f"/OCGs [{OFF} {ON}] /P /AllOn"), True),
        (member(f"/OCGs [{OFF} {ON}] /P /AnyOff"), False),
        (member(f"/OCGs [{ON}] /P /AllOff"), True),
        (member("/OCGs []"), False),
        (member(f"/VE [/Not {ON}]"), True),
        (member(f"/VE [/And {ON} [/Or {OFF} {ON}]]"), False),
        (member(f"/VE [/And {ON} [/Not [/Or {OFF} {ON}]]]"), True),
    ],
)
def test_what_a_group_or_a_membership_hides_is_not_read(tmp_path: Path, group: str | bytes, hides: bool) -> None:
    data = file(group) if isinstance(group, str) else file("1003 0 R", objects={1003: group})
    found = load(tmp_path, data)
    assert ("900" in found.text) == (not hides)
    assert "The fee is 700." in found.text
    assert all(line.split()[-1] in found.text for line in PROSE)
    assert sum("Prices" in w and "switched off" in w for w in found.warnings) == 1


@pytest.mark.parametrize(
    ("more", "group", "hides"),
    [
        ("/BaseState /OFF", ON, True),
        ("/BaseState /OFF /ON [1001 0 R]", ON, False),
        ("/AS [<< /Event /View /Category [/View] /OCGs [1002 0 R] >>]", "1002 0 R", True),
        ("/AS [<< /Event /Print /Category [/Print] /OCGs [1002 0 R] >>]", "1002 0 R", False),
    ],
)
def test_the_state_of_a_group_is_that_of_a_fresh_file(tmp_path: Path, more: str, group: str, hides: bool) -> None:
    assert ("900" in load(tmp_path, file(group, more)).text) == (not hides)


def test_forms_and_annotations_of_a_layer_are_hidden_with_it(tmp_path: Path) -> None:
    font = b"/Resources << /Font << /F 10 0 R >> >>"
    form = b"/Type /XObject /Subtype /Form /BBox [0 0 600 800] " + font
    draft = shown("Draft of a form.", 72, 440).encode()
    note = "<< /Type /Annot /Subtype /FreeText /Rect [72 400 300 420] /Contents (A draft note.) {} >>"
    for state in ("/OC 1000 0 R", "/OC 1001 0 R", ""):
        objects = {1010: _stream(form + b" " + state.encode(), draft)}
        found = load(tmp_path, file(objects=objects, page=f"/Annots [{note.format(state)}]")).text
        assert ("Draft of a form." in found) == ("A draft note." in found) == ("1000" not in state)


def test_layers_are_told_in_compressed_and_in_encrypted_files(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    packed = PdfWriter(clone_from=PdfReader(BytesIO(file())))
    packed.compress_identical_objects()
    locked = PdfWriter(clone_from=PdfReader(BytesIO(file())))
    locked.encrypt("", "owner", algorithm="RC4-128")
    for writer in (packed, locked):
        out = BytesIO()
        writer.write(out)
        found = load(tmp_path, out.getvalue())
        assert "900" not in found.text
        assert "700" in found.text


def test_layers_that_cannot_be_told_are_read_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pypdf.PdfReader", None)
    document = load(tmp_path, file())
    assert "900" in document.text
    assert any("layers" in w for w in document.warnings)


def test_a_group_that_only_the_list_of_what_is_off_names_is_hidden(tmp_path: Path) -> None:
    assert "900" not in load(tmp_path, file().replace(b"/OCGs [1000 0 R 1001", b"/OCGs [         1001")).text
