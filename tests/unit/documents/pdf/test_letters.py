"""Letters of a PDF: characters of two UTF-16 units, ligatures, marks, and fonts that do not name their letters."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcli.documents.pdf.fonts import reads_like_text, unicode_of
from kvcli.errors import InputError
from tests.unit.documents.pdf.sheets import PROSE, body, glyphs, load, sheets, shown

WORD = st.text("abcxyzABC0123456789𝑥🐈ﬁ駅", min_size=1, max_size=8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(WORD, min_size=1, max_size=5), min_size=1, max_size=6))
def test_words_are_read_as_they_are_printed_whatever_plane_their_characters_are_of(
    tmp_path: Path, lines: list[list[str]]
) -> None:
    lines = [["a", *line] for line in lines]  # PDFium leaves out lines without any ink, and not all glyphs have some
    drawn = "".join(glyphs(" ".join(line), 72, 720 - 40 * i) for i, line in enumerate(lines))
    found = unicodedata.normalize("NFKC", body(load(tmp_path, sheets([drawn])))).split()
    assert found == [unicodedata.normalize("NFKC", w) for line in lines for w in line]


def test_rows_after_a_character_of_two_units_keep_their_places(tmp_path: Path) -> None:
    rows = [("Malmo", "14", "3"), ("Turku", "8", "20"), ("Riga", "15", "6")]
    table = "".join(shown(cell, 72 + 150 * j, 600 - 16 * i) for i, row in enumerate(rows) for j, cell in enumerate(row))
    text = body(load(tmp_path, sheets([glyphs("𝑥🐈 𝑥", 72, 700) + table])))
    assert text.splitlines()[-3:] == ["  ".join(row) for row in rows]


def test_a_mark_stays_on_its_letter(tmp_path: Path) -> None:
    text = body(load(tmp_path, sheets([glyphs("cafe\u0301 bar", 72, 700)])))
    assert unicodedata.normalize("NFC", text) == "café bar"


def test_a_font_without_a_map_is_refused_and_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="characters of page 1 could not be decoded") as caught:
        load(tmp_path, sheets([glyphs("the fee is 14 euros", 72, 700, font="N")]))
    assert "--ocr" in (caught.value.hint or "")


def test_pages_without_a_map_are_named_among_others(tmp_path: Path) -> None:
    prose = "".join(shown(line, 72, 700 - 14 * i) for i, line in enumerate(PROSE))
    mixed = prose + glyphs("zq", 72, 400, font="N")
    bad = glyphs("the fee is 14 euros", 72, 700, font="N")
    document = load(tmp_path, sheets([prose, bad, mixed]))
    assert [w.split(": ", 1)[1] for w in document.warnings] == [
        "page 2 skipped: fonts without a mapping to Unicode; use --ocr",
        "2 characters on page 3 could not be decoded and are \ufffd: fonts without a mapping to Unicode",
    ]
    assert [page for _, page in document.without_text] == [2]
    assert "\ufffd\ufffd" in document.text


def test_names_of_glyphs_tell_the_letters_of_a_type_3_font(tmp_path: Path) -> None:
    document = load(tmp_path, sheets(["BT /T 12 Tf 1 0 0 1 72 700 Tm <C8C9CACACB> Tj 80 0 Td <CCCC> Tj ET"]))
    assert body(document).split() == ["Hello", "22"]
    assert not document.warnings


def test_numbers_that_read_like_a_text_are_a_guess() -> None:
    text = "the crane lifted loads in July and loads in August, fewer than planned"
    assert reads_like_text(text)
    assert not reads_like_text("".join(chr(ord(c) - 29) if ord(c) > 31 else c for c in text))  # numbers of glyphs
    assert not reads_like_text("short")


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        ("zero", "0"),
        ("uni20AC", "€"),
        ("u1D465", "𝑥"),
        ("parenleftbig", "("),
        ("a.sc", "a"),
        ("g17", ""),
        ("uniD800", ""),
    ],
)
def test_names_of_glyphs(name: str, letter: str) -> None:
    assert unicode_of(name) == letter
