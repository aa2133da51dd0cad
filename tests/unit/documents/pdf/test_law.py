"""The law of extraction: every character that PDFium finds on a page is in the text, whatever the layout.

And reading takes linear time: twice the words take about twice the time.
"""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from pathlib import Path

import pypdfium2 as pdfium
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcli.documents.pdf import layout, paragraphs
from kvcli.documents.pdf.words import Word
from tests.unit.documents.pdf.sheets import PROSE, body, load, sheets, shown

PIECE = st.tuples(
    st.sampled_from([*PROSE, "EUR 1,310.75", "17", "Norway", "a-b", "(c)", "See p. 4.", "1."]),
    st.integers(20, 560),
    st.integers(20, 770),
    st.sampled_from([6, 9, 11, 11, 11, 14, 30]),
)


def characters(text: str) -> Counter[str]:
    """Letters and digits; hyphens at line ends go, and signs that set scripts apart come."""
    return Counter(c for c in unicodedata.normalize("NFKC", text) if c.isalnum())


def printed(data: bytes) -> str:
    """What PDFium finds on the pages."""
    document = pdfium.PdfDocument(data)
    return "".join(page.get_textpage().get_text_range() for page in document)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(PIECE, min_size=1, max_size=25), min_size=1, max_size=3))
def test_every_character_is_in_the_text(tmp_path: Path, pages: list[list[tuple[str, int, int, int]]]) -> None:
    data = sheets(["".join(shown(text, x, y, size) for text, x, y, size in page) for page in pages])
    document = load(tmp_path, data)
    found, expected = characters(body(document)), characters(printed(data))
    assert found == expected or (document.notes and found < expected and set(found) == set(expected))  # running heads


def seconds(words: list[Word]) -> float:
    """Processor time of laying out a page and joining its paragraphs; the least of two runs."""
    found = []
    for _ in range(2):
        start = time.process_time()
        lines = layout.lines(words)
        paragraphs.flow(lines, paragraphs.Hyphens(line.text for line in lines))
        found.append(time.process_time() - start)
    return min(found)


def grid(n: int) -> list[Word]:
    return [Word(f"w{i}", 5.0 * (i % 97), 6.0 * (i // 97), 5.0 * (i % 97) + 4, 6.0 * (i // 97) + 5) for i in range(n)]


def one_line(n: int) -> list[Word]:
    return [Word("word-", 6.0 * i, 10.0, 6.0 * i + 5, 20.0) for i in range(n)]


def one_place(n: int) -> list[Word]:
    return [Word("same", 10.0, 10.0, 30.0, 20.0) for _ in range(n)]


def hyphens(n: int) -> list[Word]:
    return [Word("broken-", 72.0, 12.0 * i, 500.0, 12.0 * i + 11) for i in range(n)]


def initials(n: int) -> list[Word]:
    return [
        Word("T" if i % 2 else "he", 10.0 * (i % 2), 4.0 * i, 10.0 * (i % 2) + 9, 4.0 * i + (40 if i % 2 else 10))
        for i in range(n)
    ]


@pytest.mark.parametrize("page", [grid, one_line, one_place, hyphens, initials])
def test_twice_the_words_take_about_twice_the_time(page: object) -> None:
    assert callable(page)
    n = 4_000
    assert seconds(page(2 * n)) < 3.5 * seconds(page(n)) + 0.2
