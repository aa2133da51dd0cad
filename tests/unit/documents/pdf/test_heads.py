"""Running heads: what repeats goes, and no amount, date or number of a document goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.documents.pdf.sheets import PROSE, body, load, sheets, shown

DAY = st.integers(1, 28).map(lambda d: f"{d} March 2024")
AMOUNT = st.integers(1, 400_000).map(lambda cents: f"EUR {cents / 100:,.2f}")


def book(tops: list[str], feet: list[str]) -> bytes:
    prose = [shown(line, 72, 600 - 14 * i) for i, line in enumerate(PROSE)]
    return sheets(
        [
            shown(top, 72, 750) + "".join(prose[i % 5 : i % 5 + 4]) + shown(foot, 72, 50)
            for i, (top, foot) in enumerate(zip(tops, feet, strict=True))
        ]
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 10**6), DAY, AMOUNT), min_size=3, max_size=8, unique_by=lambda found: found[0]),
    st.sampled_from([0, 1, 202400]),
)
def test_no_number_date_or_amount_is_taken_for_a_running_head(
    tmp_path: Path, found: list[tuple[int, str, str]], first: int
) -> None:
    numbers = [first + i if first else n for i, (n, _, _) in enumerate(found)]
    tops = [f"Invoice {number} of {day}" for number, (_, day, _) in zip(numbers, found, strict=True)]
    feet = [f"Amount due: {amount}" for _, _, amount in found]
    document = load(tmp_path, book(tops, feet))
    for span, top, foot in zip(document.spans, tops, feet, strict=True):
        assert top in document.text[span.body : span.end]
        assert foot in document.text[span.body : span.end]


@pytest.mark.parametrize("label", ["Invoice {}", "Exercise {}", "Order no. {}", "Total: {}", "Date {} May"])
@pytest.mark.parametrize("first", [1, 5, 1042])
def test_numbers_that_run_with_the_pages_are_text_if_words_name_them(tmp_path: Path, label: str, first: int) -> None:
    tops = [label.format(first + i) for i in range(6)]
    text = load(tmp_path, book(tops, ["end"] * 6)).text
    assert all(top in text for top in tops)


@pytest.mark.parametrize(
    ("foot", "first"),
    [("{}", 1), ("- {} -", 1), ("Page {} of 9", 1), ("{}", 131), ("Seite {}", 7), ("Harbour Press | {}", 1)],
)
def test_page_numbers_go(tmp_path: Path, foot: str, first: int) -> None:
    feet = [foot.format(first + i) for i in range(9)]
    tops = [f"Chapter of the {word}" for word in ("sea", "net", "oar", "sail", "mast", "keel", "rope", "tide", "gull")]
    document = load(tmp_path, book(tops, feet))
    assert sum(text in body(document).splitlines() for text in feet) <= any(c.isalpha() for c in foot)
    assert "running heads and feet left out" in document.notes[0]


def test_page_numbers_of_a_book_with_front_matter_go_with_their_heads(tmp_path: Path) -> None:
    roman = ["i", "ii", "iii", "iv", "v", "vi"]
    tops = [*(f"{r}   |  THE HARBOUR" for r in roman), *(f"{n}   |  THE HARBOUR" for n in range(1, 9))]
    lines = body(load(tmp_path, book(tops, ["end"] * 14))).splitlines()
    assert sum("THE HARBOUR" in line for line in lines) == 1


def test_chapters_in_heads_go_but_for_the_first_of_each(tmp_path: Path) -> None:
    tops = [f"Chapter {1 + i // 6}" for i in range(18)]
    lines = body(load(tmp_path, book(tops, [str(i + 1) for i in range(18)]))).splitlines()
    assert [line for line in lines if line.startswith("Chapter")] == ["Chapter 1", "Chapter 2", "Chapter 3"]


def test_a_head_goes_if_the_heading_of_its_chapter_says_the_same(tmp_path: Path) -> None:
    """The heading is in capitals and has no number; a page that has nothing but its head is a blank page."""
    page = shown("Chapter 4. The Old Harbour", 72, 750) + "".join(
        shown(t, 72, 600 - 14 * i) for i, t in enumerate(PROSE)
    )
    blank = shown("Chapter 4. The Old Harbour", 72, 750)
    opening = shown("THE OLD HARBOUR", 72, 650, 18) + page
    document = load(tmp_path, sheets([opening, page, page, blank, page]))
    assert "Chapter 4" not in body(document)
    assert "THE OLD HARBOUR" in body(document)
    assert [len(document.text[s.body : s.end].strip()) > 0 for s in document.spans] == [True, True, True, False, True]


def test_pages_of_nothing_but_their_heads_are_read(tmp_path: Path) -> None:
    document = load(tmp_path, sheets([shown("The Old Harbour", 72, 750)] * 5))
    assert body(document).count("The Old Harbour") == 5
