"""Quotes in answers: what is in the document is found there, and what is not is never called a quote."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kvcli.cli.views.citations import where
from kvcli.documents import Document, Span, read
from kvcli.documents.cited_answer import cite_answer
from kvcli.documents.normalize import normalize
from kvcli.documents.pages import MARK, mark
from kvcli.documents.quotes import ALIKE, LEAST, Citation, QuoteIndex, folded_quote, marked

PAGES = (
    "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, I thought "
    "I would sail about a little.\n",
    "The sea had jeeringly kept his ﬁnite body up, but drowned the inﬁnite of his soul. Pip’s ringed horizon began to "
    "expand around him miser-\nably. It was the well-known\ncabin boy, the Pequod’s\n",
    "own, and a soft hy\xad\nphen. The ship sailed on. The ship sailed on.\n",
)


def paged(*pages: str, file: str = "moby.pdf") -> Document:
    """A document whose pages begin with kvcli's mark, as those of a PDF do."""
    text, spans = "", []
    for n, page in enumerate(pages, 1):
        mark = f"[page {n}]\n"
        spans.append(Span(len(text), len(text) + len(mark + page), len(text) + len(mark), file, n))
        text += mark + page
    return Document(text, (file,), "0" * 64, len(text), spans=tuple(spans), pages=len(pages))


MOBY = QuoteIndex(paged(*PAGES))


def cite(index: QuoteIndex, answer: str, question: str = "") -> list[Citation]:
    return cite_answer(index, answer, question)[1]


def one(answer: str, quotes: QuoteIndex = MOBY) -> Citation:
    (citation,) = cite(quotes, answer)
    return citation


@pytest.mark.parametrize(
    ("open_", "close"),
    ["“”", "„“", "„”", "«»", "»«", "‹›", "「」", "『』", '""', "‚‘", "‘’", "''", ("``", "''"), ("\n> ", "\n")],
)
def test_every_style_of_marks(open_: str, close: str) -> None:
    citation = one(f"It says {open_}having little or no money{close} there")
    assert (citation.status, citation.quote, citation.marked) == ("verified", "having little or no money", True)
    assert citation.span is not None
    assert citation.span.page == 1


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("kept his finite body up", "kept his ﬁnite body up"),  # ligature
        ("drowned  the\ninfinite of", "drowned the inﬁnite of"),  # white space
        ("around him miserably", "around him miser-\nably"),  # hyphenation
        ("a soft hyphen", "a soft hy\xad\nphen"),
        ("the wellknown cabin boy", "the well-known\ncabin boy"),
        ("the well-known cabin boy", "the well-known\ncabin boy"),
        ("Pip's ringed horizon", "Pip’s ringed horizon"),  # shape of the apostrophe
        ("ｋｅｐｔ his", "kept his"),  # full width
        ("the Pequod’s own", "the Pequod’s\nown"),  # over the mark [page 3]
        ("the Pequod’s [page 3] own", "the Pequod’s\nown"),
        ("the Pequod’s [page 3, printed iv] own", "the Pequod’s\nown"),
        ("infinite of his soul,", "inﬁnite of his soul"),  # punctuation of the answer's own sentence
        ("boy", "boy"),
    ],
)
def test_another_spelling_is_verified_and_shown_as_the_source_has_it(written: str, source: str) -> None:
    citation = one(f"He writes “{written}”")
    assert (citation.status, citation.quote, citation.score) == ("verified", source, 100)


def test_words_that_differ_are_repaired_to_the_sources() -> None:
    citation = one("He says “the sea had jeringly kept his finite body up”.")
    assert citation.status == "repaired"
    assert citation.quote == "The sea had jeeringly kept his ﬁnite body up"
    assert ALIKE <= citation.score < 100
    assert citation.span is not None
    assert citation.span.page == 2


@pytest.mark.parametrize(
    "written", ["The sea had kindly drowned him for ever", "monkey", "Ismael", "shmael", "ringed hor"]
)
def test_what_is_not_there_is_unverified(written: str) -> None:
    """Also short words that are nearly there, and pieces of words."""
    citation = one(f"It says “{written}” somewhere")
    assert (citation.status, citation.quote) == ("unverified", written)
    assert (citation.start, citation.end, citation.span, citation.places) == (None, None, None, 0)


def test_an_omission_cuts_a_quote_in_two() -> None:
    first, second = cite(MOBY, "“…the sea had jeeringly … drowned the infinite […] ”")
    assert (first.status, second.status) == ("repaired", "verified")  # of the first the case differs
    assert second.quote == "drowned the inﬁnite"


def test_places_are_counted_and_the_first_is_named() -> None:
    citation = one("“The ship sailed on”")
    assert citation.places == 2
    assert citation.start == MOBY.document.text.index("The ship")


def test_the_texts_own_words_without_marks() -> None:
    whole = one("Some years ago")
    assert (whole.status, whole.marked, whole.quote) == ("verified", False, "Some years ago")
    sentences = cite(MOBY, "He was lost. The sea had jeeringly kept his finite body up. “I would sail about”, he said.")
    assert [(c.status, c.marked) for c in sentences] == [("verified", False), ("verified", True)]
    assert cite(MOBY, "- I would sail about a little") != []
    assert cite(MOBY, "He knows Mrs. I would sail about") == []  # no sentence ends there


@pytest.mark.parametrize(
    "answer", ["", "boy", "The whale swam away, and nobody saw it again.", "“”", "“ … ”", "5' 11\""]
)
def test_no_quote_no_citation(answer: str) -> None:
    """Too short to be one without marks, not verbatim, or nothing at all between the marks."""
    assert cite(MOBY, answer) == []


def test_an_apostrophe_opens_nothing() -> None:
    assert marked("The sailor's boat isn't the captain's.") == []
    assert [("It's ‘don’t go’")[a:b] for a, b, _ in marked("It's ‘don’t go’")] == ["don’t go"]


def test_chinese_has_no_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("红豆生南国，春来发几枝。愿君多采撷，此物最相思。\n", encoding="utf-8")
    citation = one("诗云：「愿君多采撷」", QuoteIndex(read([tmp_path / "a.txt"])))
    assert (citation.status, citation.quote, citation.line) == ("verified", "愿君多采撷", 1)


def test_lines_and_files_are_named(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one\ntwo\n"), ("b.txt", "three\nfour five six\n")):
        (tmp_path / name).write_text(text)
    citation = one("“five six”", QuoteIndex(read([tmp_path / "a.txt", tmp_path / "b.txt"])))
    assert citation.span is not None
    assert (citation.span.file, citation.line) == (str(tmp_path / "b.txt"), 2)
    assert one("“=== a.txt”", QuoteIndex(read([tmp_path / "a.txt", tmp_path / "b.txt"]))).status == "unverified"


words = st.text(st.sampled_from("abc deﬁ\n-’“é\u0301xyz\u00ad.鯨"), min_size=1, max_size=60)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(st.lists(words, min_size=1, max_size=4), st.data())
def test_any_words_of_the_text_are_found_in_it(pages: list[str], data: st.DataObject) -> None:
    """Whole words out of the text, marked as a quote, are verified, and what is shown are words that it has."""
    document = paged(*pages)
    quotes = QuoteIndex(document)
    folded = quotes.folded
    ends = [i for i in range(len(folded.text) + 1) if not folded.splits_word(i)]
    assume(9 * "\u00ad" not in "".join(pages))  # an accent behind so many belongs to nothing
    assume(len(ends) > 1 and any(c.isalnum() for c in folded.text))
    first = data.draw(st.integers(0, len(ends) - 2))
    quote = folded.text[ends[first] : data.draw(st.sampled_from(ends[first + 1 :]))]
    assume('"' not in quote and any(c.isalnum() for c in quote))
    for citation in cite(quotes, f"It says\n\n> {quote}\n"):
        if not citation.marked:
            continue
        assert citation.status == "verified"
        assert citation.start is not None
        assert citation.end is not None
        assert citation.quote in document.text or "[page" in document.text[citation.start : citation.end]
        assert normalize(citation.quote).text.strip() in folded.text


spelled = st.text(st.characters(categories=("L", "N", "P", "Z"), max_codepoint=0x24F), max_size=60)


@given(spelled)
def test_every_folded_character_has_its_place_and_composition_does_not_matter(text: str) -> None:
    folded = normalize(text)
    assert len(folded.text) == len(folded.starts) == len(folded.ends)
    assert all(0 <= a < b <= len(text) for a, b in zip(folded.starts, folded.ends, strict=True))
    assert "  " not in folded.text
    assert list(folded.starts) == sorted(folded.starts)
    assert normalize(unicodedata.normalize("NFC", text)).text == normalize(unicodedata.normalize("NFD", text)).text


@given(st.text(max_size=200), st.text(max_size=400))
def test_any_answer_to_any_text_is_cited_without_overlap(answer: str, text: str) -> None:
    found = cite(QuoteIndex(paged(text)), answer)
    ends = [0]
    for citation in found:
        assert ends[-1] <= citation.answer_start < citation.answer_end <= len(answer)
        ends.append(citation.answer_end)
        assert citation.marked or citation.answer_end - citation.answer_start >= LEAST
        assert (citation.span is None) == (citation.status == "unverified")


def test_the_same_place_is_cited_once() -> None:
    answer = "“The ship sailed on.” It is true: “The ship sailed on”. “The ship sailed off entirely.”"
    found = cite(MOBY, answer)
    assert [c.status for c in found] == ["verified", "unverified"]


def test_the_words_of_the_question_are_no_quote_unless_they_are_marked() -> None:
    question = "Who says: I would sail about a little?"
    assert cite(MOBY, "I would sail about a little.", question) == []
    assert len(cite(MOBY, "“I would sail about a little”", question)) == 1
    assert len(cite(MOBY, "I would sail about a little.", "Who sails?")) == 1


def test_a_heading_is_no_quote_unless_it_is_marked() -> None:
    spans = tuple(replace(s, section="Part I › 3.2. The ship sailed on") for s in MOBY.document.spans)
    index = QuoteIndex(replace(MOBY.document, spans=spans))
    assert cite(index, "The ship sailed on.") == []
    for quote in ("“The ship sailed on”", "and a soft hyphen. The ship sailed on"):
        assert len(cite(index, quote)) == 1
    assert len(cite(MOBY, "The ship sailed on.")) == 1
    manual = QuoteIndex(
        Document.of_text("5.12.1 When a package can be salvaged\n5.12.2 releases the package at last.\n")
    )
    assert cite(manual, "5.12.1 When a package can be salvaged\n\nYes.") == []
    assert len(cite(manual, "Well. 5.12.2 releases the package at last. Yes.")) == 1


@given(st.integers(1, 9_999_999), st.text(st.characters(exclude_characters="]\n"), max_size=40))
def test_marks_of_pages_are_known_whatever_the_label(page: int, label: str) -> None:
    assert re.fullmatch(MARK, mark(page, label))
    assert folded_quote(f"the Pequod’s {mark(page, label)} own") == "the Pequod's own"


def test_a_page_is_named_as_a_viewer_counts_it() -> None:
    document = replace(MOBY.document, spans=tuple(replace(s, label=f"x{s.page}") for s in MOBY.document.spans))
    assert where(document, document.spans[1], None) == "p. 2 (printed x2)"
    assert where(MOBY.document, MOBY.document.spans[1], None) == "p. 2"
