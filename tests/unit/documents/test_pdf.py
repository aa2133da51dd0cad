"""PDF: reading order, paragraphs, running heads, maps of pages, and files that cannot be answered from."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from kvcli.documents import Document, Options, isolated, pages, read
from kvcli.documents.document import Source
from kvcli.documents.pdf import damage, layout, paragraphs
from kvcli.documents.pdf.words import Word
from kvcli.errors import InputError, UsageError
from tests.unit.documents.makers import Page, lines, pdf

PROSE = (
    "The old man sat by the harbour and mended",
    "his nets until the light was gone, and then",
    "he walked home along the sea wall. He said",
    "that no ship had come in for seven weeks,",
    "and that none was expected before winter.",
)
OTHER = (
    "In the town the bakers had no flour left and",
    "the children were sent out to gather mussels",
    "at low tide. Nobody spoke about the war. The",
    "mayor kept the church bell silent on Sundays",
    "so that it would not be heard from the sea.",
)


def load(tmp_path: Path, data: bytes, **options: object) -> Document:
    (tmp_path / "book.pdf").write_bytes(data)
    return read([tmp_path / "book.pdf"], None, Options(**options))  # type: ignore[arg-type]


def words(text: str) -> list[str]:
    return re.sub(r"\[page \w+\]", "", text).split()


def test_paragraphs_are_joined_and_pages_are_marked(tmp_path: Path) -> None:
    document = load(tmp_path, pdf([Page(lines(PROSE)), Page(lines(["A second page."]))]))
    assert document.text == f"[page 1]\n{' '.join(PROSE)}\n\n[page 2]\nA second page.\n"
    assert document.pages == 2


def test_a_hyphen_at_a_line_end_is_undone_where_the_word_is_written_without(tmp_path: Path) -> None:
    first = [
        "The expedition was led by a well-known sur-",
        "geon and a well-",
        "known priest, both of whom brought their",
        "own",
    ]
    text = load(tmp_path, pdf([Page(lines(first))])).text
    assert "a well-known surgeon and a well-known priest" in text


def test_a_word_across_two_pages_is_whole_and_a_ligature_is_letters(tmp_path: Path) -> None:
    text = load(tmp_path, pdf([Page(lines(["They were simple ﬁsh-"])), Page(lines(["ermen of the coast."]))])).text
    assert text == "[page 1]\nThey were simple fishermen\n\n[page 2]\nof the coast.\n"
    assert paragraphs.clean("ﬁne aﬄuent") == "fine affluent"


def test_two_columns_are_read_one_after_the_other_however_they_were_drawn(tmp_path: Path) -> None:
    left, right = lines(PROSE * 3, x=60), lines(OTHER * 3, x=330)
    rows = [text for pair in zip(left, right, strict=True) for text in pair]
    title = [(60.0, 60.0, 18.0, "The harbour and the town in the long winter of the war")]
    for order in (left + right, right + left, rows):
        text = load(tmp_path, pdf([Page(title + order)])).text
        assert words(text) == words(title[0][3]) + words(" ".join(PROSE * 3)) + words(" ".join(OTHER * 3))


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    cells = [["ship", "tons", "year"], ["Pequod", "350", "1841"], ["Rachel", "410", "1839"], ["Delight", "290", "1850"]]
    drawn = [(72.0 + 200 * j, 100.0 + 16 * i, 11.0, cells[i][j]) for j in range(3) for i in range(4)]
    assert load(tmp_path, pdf([Page(drawn)])).text == "[page 1]\n" + "\n".join("  ".join(r) for r in cells) + "\n"


def test_running_heads_go_and_the_first_of_its_kind_stays(tmp_path: Path) -> None:
    book = [
        Page([(72, 40, 9, "THE HARBOUR"), *lines([f"Text of leaf {'abcdef'[i]}."]), (300, 760, 9, f"- {i + 1} -")])
        for i in range(6)
    ]
    document = load(tmp_path, pdf(book))
    assert document.text.count("THE HARBOUR") == 1
    assert "- 3 -" not in document.text
    assert all(f"Text of leaf {c}." in document.text for c in "abcdef")
    assert "“THE HARBOUR” ×5" in document.notes[0]


def test_two_pages_that_look_alike_lose_nothing(tmp_path: Path) -> None:
    text = load(tmp_path, pdf([Page(lines(["Form 7", "Name: ____"]))] * 2)).text
    assert text.count("Form 7") == 2


def test_a_page_on_its_side_is_read_upright(tmp_path: Path) -> None:
    text = load(tmp_path, pdf([Page(lines(PROSE), rotate=90)])).text
    assert words(text) == words(" ".join(PROSE))


def test_spans_know_page_label_section_and_line(tmp_path: Path) -> None:
    book = [Page(lines([f"Words of page {n}.", "", "More words."])) for n in ("one", "two", "three")]
    document = load(
        tmp_path, pdf(book, outline=[("Preface", 1), ("Chapter I", 3)], labels="0 << /S /r >> 2 << /S /D >>")
    )
    assert [(s.page, s.label, s.section) for s in document.spans] == [
        (1, "i", "Preface"),
        (2, "ii", "Preface"),
        (3, "1", "Chapter I"),
    ]
    assert [document.text[s.start : s.body].strip() for s in document.spans] == [
        "[page 1, printed i]",
        "[page 2, printed ii]",
        "[page 3, printed 1]",
    ]
    at = document.text.index("page three")
    assert document.at(at).page == 3
    assert document.line(at) == 1
    assert document.line(document.text.rindex("More")) > 1
    body = [document.text[s.body : s.end] for s in document.spans]
    assert all("[page" not in text for text in body)


def test_pages_are_chosen_by_number(tmp_path: Path) -> None:
    book = pdf([Page(lines([f"This is leaf {i}."])) for i in range(1, 7)])
    document = load(tmp_path, book, pages=pages.parse("2-3,5"))
    assert re.findall(r"leaf (\d)", document.text) == ["2", "3", "5"]
    assert document.pages == 3
    with pytest.raises(UsageError, match=r"has 6 pages, and there is no page 9"):
        load(tmp_path, book, pages=pages.parse("9"))


def test_ranges() -> None:
    assert pages.parse("1-40,55") == ((1, 40), (55, 55))
    assert pages.select(pages.parse("-2,4-"), 5, "a") == [1, 2, 4, 5]
    assert pages.shown([1, 2, 3, 7]) == "1–3, 7"
    for wrong in ("", "a", "3-1", "0", "1,,2", "-", "1-2-3", "-0"):
        with pytest.raises(UsageError, match="--pages"):
            pages.parse(wrong)


# --- what cannot be answered from ---


def refused(tmp_path: Path, data: bytes, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        load(tmp_path, data, **options)
    return caught.value


def test_a_scan_is_refused_and_its_stamps_are_no_text(tmp_path: Path) -> None:
    bare = refused(tmp_path, pdf([Page(picture=True)] * 3))
    assert "pages 1–3 are images without text" in bare.message
    assert "--ocr" in (bare.hint or "")
    stamped = [Page([(72, 20, 9, f"Case 2:18 filed 09/13/18 Page {i} of 16")], picture=True) for i in range(1, 17)]
    assert "pages 1–16 are images without text" in refused(tmp_path, pdf(stamped)).message


def test_pictures_among_pages_of_text_are_said(tmp_path: Path) -> None:
    document = load(tmp_path, pdf([Page(lines(PROSE)), Page(lines(OTHER)), Page(picture=True)]))
    assert "page 3 skipped: mostly images" in document.warnings[0]
    assert [page for _, page in document.without_text] == [3]


def test_empty_pages_are_no_book(tmp_path: Path) -> None:
    assert "pages 1–2 being empty" in refused(tmp_path, pdf([Page(), Page()])).message


def test_an_encrypted_file_names_the_way_out_and_one_without_a_password_is_read(tmp_path: Path) -> None:
    error = refused(tmp_path, pdf([Page(lines(PROSE))], password="secret"))
    assert "is encrypted" in error.message
    assert "qpdf --decrypt" in (error.hint or "")
    assert words(load(tmp_path, pdf([Page(lines(PROSE))], password="")).text) == words(" ".join(PROSE))


def test_damage_is_never_answered_from(tmp_path: Path) -> None:
    whole = pdf([Page(lines(PROSE)), Page(lines(OTHER))])
    at = whole.rindex(b"startxref")
    for cut in (at, at + 5, at + 12):
        assert "is damaged: it breaks off" in refused(tmp_path, whole[:cut]).message
    assert "is damaged" in refused(tmp_path, whole[:40]).message
    at = whole.rindex(b"stream\n", 0, whole.rindex(b"endstream")) + 20
    broken = whole[:at] + bytes(b ^ 0x55 for b in whole[at : at + 30]) + whole[at + 30 :]
    assert "1 of its compressed streams" in refused(tmp_path, broken).message


def test_what_viewers_show_all_the_same_is_read(tmp_path: Path) -> None:
    whole = pdf([Page(lines(PROSE)), Page(lines(OTHER))])
    document = load(tmp_path, whole.removesuffix(b"%%EOF\n"))
    assert words(document.text) == words(" ".join(PROSE + OTHER))
    at = whole.rindex(b"\nendstream")
    document = load(tmp_path, whole[: at - 2] + b"\0\0" + whole[at:])
    assert words(document.text) == words(" ".join(PROSE + OTHER))
    assert "1 of its compressed streams have a wrong check sum" in document.warnings[0]


def test_objects_that_are_not_where_the_table_says_are_counted(tmp_path: Path) -> None:
    whole = pdf([Page(lines(PROSE)), Page(lines(["A second page."]))])
    assert not load(tmp_path, whole).warnings
    assert not load(tmp_path, b"\n\n" + whole).warnings  # numbers count from the mark of a PDF
    damaged = whole.replace(b"\n3 0 obj", b"\n3 0 o\0j").replace(b"\n4 0 obj", b"\n4 0 o\0j")
    (warning,) = load(tmp_path, damaged).warnings
    assert "2 objects are not where its table says" in warning


def test_streams_are_checked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert damage.streams(pdf([Page(lines(PROSE * 50))])) == (0, 0)
    monkeypatch.setattr(damage, "INFLATED", 100)
    start = time.process_time()
    assert damage.streams(pdf([Page(lines(PROSE * 50))] * 20)) == (0, 0)  # not looked at any more
    assert time.process_time() - start < 5


# --- readers in processes of their own ---


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\ndef main(): os.abort()\n", []),
        ("def main(): print('{\"page\": 1}', flush=True); raise ValueError\n", [{"page": 1}]),
        ("def main(): print('no json'); print('{\"page\": 2}')\n", [{"page": 2}]),
    ],
)
def test_a_reader_that_dies_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: list[object]
) -> None:
    (tmp_path / "dying.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(isolated.run("dying", Source(b"", "a.pdf", "a.pdf"))) == said


def test_a_reader_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging.py").write_text("import time\ndef main(): time.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="took longer than 1 seconds"):
        list(isolated.run("hanging", Source(b"", "a.pdf", "a.pdf"), silence=1.0))


def test_a_page_of_ten_thousand_words_is_laid_out_in_time() -> None:
    grid = [
        Word(f"w{i}", 5.0 * (i % 100), 6.0 * (i // 100), 5.0 * (i % 100) + 4, 6.0 * (i // 100) + 5, 0)
        for i in range(10_000)
    ]
    start = time.process_time()
    found = layout.lines(grid)
    assert sum(len(line.text.split()) for line in found) == 10_000
    assert time.process_time() - start < 20
