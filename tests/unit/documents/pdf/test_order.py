"""The order of reading: columns of prose, tables, labels with values, right-to-left scripts, digits off the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcli.documents.pdf.direction import logical, reading_order
from tests.unit.documents.pdf.sheets import PROSE, body, glyphs, load, sheets, shown

HERE = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABEL = st.sampled_from(
    [
        "Name of the captain on duty",
        "Harbour dues for the season",
        "Registered port of the ship",
        "Tons of coal on board",
    ]
)
VALUE = st.sampled_from(
    ["Ines Contreras of Lisbon", "EUR 1,250 for each month", "412 in eleven countries", "paid on 3 May by the owner"]
)


@HERE
@given(st.lists(st.tuples(LABEL, VALUE, VALUE), min_size=5, max_size=12), st.sampled_from([14, 18, 30]), st.booleans())
def test_a_label_is_on_the_line_of_its_values_however_they_are_drawn(
    tmp_path: Path, rows: list[tuple[str, str, str]], pitch: int, by_column: bool
) -> None:
    cells = [(i, j, text) for i, row in enumerate(rows) for j, text in enumerate(row)]
    cells.sort(key=lambda c: c[:2][:: -1 if by_column else 1])
    drawn = "".join(shown(text, 60 + 180 * j, 740 - pitch * i) for i, j, text in cells)
    found = body(load(tmp_path, sheets([drawn]))).splitlines()
    assert [line for line in found if line] == ["  ".join(row) for row in rows]


@pytest.mark.parametrize("shift", [0, 6])
@pytest.mark.parametrize("gutter", [300, 330])
def test_columns_of_prose_are_read_one_after_the_other(tmp_path: Path, shift: int, gutter: int) -> None:
    left = [shown(t, 60, 700 - 14 * i) for i, t in enumerate(PROSE)]
    right = [shown(t, gutter, 700 - shift - 14 * i) for i, t in enumerate(PROSE[::-1])]
    drawn = "".join(x for pair in zip(left, right, strict=True) for x in pair)
    assert body(load(tmp_path, sheets([drawn]))).split() == " ".join(PROSE + PROSE[::-1]).split()


@pytest.mark.parametrize(
    ("base", "off", "size", "rise", "read"),
    [
        ("5 x 10", "6", 7, 4, "5 x 10^6 km"),
        ("5 x 10", "-12", 7, 4, "5 x 10^-12 km"),
        ("the 53", "2,3", 6, 4, "the 53^2,3 km"),
        ("H", "2", 7, -2, "H2 km"),
        ("lb 10", "2", 7, -2, "lb 10_2 km"),
        ("the 10", "6", 11, 0, "the 106 km"),
        ("the 20", "th", 7, 4, "the 20th km"),
    ],
)
@pytest.mark.parametrize("as_one_word", [False, True])
def test_digits_off_the_line_do_not_melt_into_a_number(
    tmp_path: Path, base: str, off: str, size: int, rise: int, read: str, as_one_word: bool
) -> None:
    if as_one_word:
        drawn = f"BT /F 11 Tf 1 0 0 1 72 700 Tm ({base}) Tj {rise} Ts /F {size} Tf ({off}) Tj 0 Ts /F 11 Tf ( km) Tj ET"
    else:
        widths = {" ": 3.06, "x": 5.5, "H": 7.94, "t": 3.06, "l": 2.44}
        x = 72 + sum(widths.get(c, 6.12) for c in base)
        y = x + sum(3.33 if c in "-," else 2.78 if c == "t" else 5.56 for c in off) * size / 10 * (
            1 if size < 11 else 1.0
        )
        drawn = shown("km", y + 4, 700) + shown(off, x, 700 + rise, size) + shown(base, 72, 700)
    assert body(load(tmp_path, sheets([drawn]))) == read


def test_the_mark_of_a_note_is_no_number_of_its_text(tmp_path: Path) -> None:
    """A bare 1 at the end of a text is the first thing that a small model repeats."""
    drawn = shown("1", 72, 704, 7) + shown("This is a note.", 80, 700)
    assert body(load(tmp_path, sheets([drawn]))).split() == ["^1", "This", "is", "a", "note."]


def seen(words: list[str], x: float, y: float) -> str:
    """Words of a right-to-left line as they are seen, drawn from left to right."""
    return glyphs(" ".join(w[::-1] if any(c > "֐" for c in w) else w for w in reversed(words)), x, y)


@pytest.mark.parametrize(
    "words",
    [["שלום", "עולם", "טוב"], ["שלום", "12", "עולם"], ["שלום", "Windows", "עולם"], ["שלום,", "עולם", "אחרון."]],
)
def test_words_of_a_right_to_left_line_are_in_the_order_of_reading(tmp_path: Path, words: list[str]) -> None:
    lines = [words, ["חוזה", "שכירות", "בין", "הצדדים"]]
    drawn = "".join(seen(w, 72, 700 - 20 * i) for i, w in enumerate(lines))
    assert body(load(tmp_path, sheets([drawn]))).split() == [w for line in lines for w in line]


def test_columns_of_a_right_to_left_page_begin_at_the_right(tmp_path: Path) -> None:
    rows = [("שם", "מחיר", "תאריך"), ("קמח", "12", "2024"), ("סוכר", "7", "2023")]
    drawn = "".join(
        glyphs(cell if cell.isdecimal() else cell[::-1], 400 - 120 * j, 700 - 20 * i)
        for i, row in enumerate(rows)
        for j, cell in enumerate(row)
    )
    assert body(load(tmp_path, sheets([drawn]))).splitlines() == ["  ".join(row) for row in rows]


def test_a_foreign_name_is_not_turned() -> None:
    assert logical(list(")םולש(")) == "(שלום)"
    assert logical(list("12-ב")) == "ב-12"
    line = ["שלום", "10", "Windows", "עולם", "30"]
    assert [line[i] for i in reading_order(line, right_to_left=True)] == ["שלום", "Windows", "10", "עולם", "30"]
    line = ["see", "גדול", "30", "עולם", "there"]
    assert [line[i] for i in reading_order(line, right_to_left=False)] == ["see", "עולם", "30", "גדול", "there"]


@pytest.mark.parametrize(
    ("cap", "rest", "begins"),
    [("T", "he harbour was", "The harbour was"), ("A", "man sat", "A man sat"), ("O", "NCE upon", "ONCE upon")],
)
@pytest.mark.parametrize("size", [26, 40, 60])
def test_an_initial_of_several_lines_joins_its_word(
    tmp_path: Path, cap: str, rest: str, begins: str, size: int
) -> None:
    x = 72 + 0.8 * size
    beside = [f"{rest} by the sea wall while the light was on it,", "and the nets were dry, and nobody came in from"]
    below = ["the town or from the islands; it was long after", "the man who kept the light had gone home."]
    depth = 1 + int(0.72 * size) // 14
    lines = [*beside, *below]
    drawn = shown(cap, 72, 710 - 0.72 * size, size) + "".join(
        shown(t, x if i < depth else 72, 702 - 14 * i) for i, t in enumerate(lines)
    )
    text = body(load(tmp_path, sheets([drawn])))
    assert text.split() == f"{begins} {' '.join(lines)[len(rest) + 1 :]}".split()
