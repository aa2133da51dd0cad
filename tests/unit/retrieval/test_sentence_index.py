"""The sentence that shares a question's words is found, in any language and script."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcli.documents.document import Document, Span
from kvcli.documents.kept import DocumentCache
from kvcli.events import Quote
from kvcli.retrieval import sentences
from kvcli.retrieval.quotes import QuoteSearch
from kvcli.retrieval.sentences import STORED_FROM, SentenceIndex, sentence_index
from kvcli.retrieval.words import find_words, fold_words, language

TEXTS = {
    "english": (
        "The harbour master of the town keeps two parrots. The lamps were burning in the streets when it was late."
        " She had been the captain of that ship for years.",
        "Which ship was she the captain of for a year?",
        "captain",
    ),
    "german": (
        "Der Bäcker der Stadt hat die alten Häuser gekauft. Im Hafen lagen nicht viele Schiffe."
        " Sie war mit ihrem Bruder in der Mühle.",
        "Wer hat das alte Haus gekauft?",
        "Häuser",
    ),
    "french": (
        "Le boulanger de la ville a vendu les chevaux. Les bateaux ne sont pas dans le port."
        " Elle était avec son frère au moulin.",
        "Qui vend un cheval et des chevaux dans la ville ?",
        "boulanger",
    ),
    "spanish": (
        "El panadero de la ciudad vendió los barcos. Las casas no están en el puerto."
        " Ella estaba con su hermano en el molino.",
        "¿Quién vendió el barco?",
        "barcos",
    ),
    "italian": (
        "Il fornaio della città ha venduto le barche. Le case non sono nel porto. Lei era con suo fratello al mulino.",
        "Chi ha venduto la barca?",
        "barche",
    ),
    "russian": (
        "Пекарь этого города продал старые корабли. В гавани не было домов. Она была с братом на мельнице.",
        "Кто продал старый корабль?",
        "корабли",
    ),
    "japanese": ("港町の灯台は青い。船長は猫を飼っている。雨が降った。", "船長は何を飼っていますか？", "猫"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_inflected_words_find_their_sentence(name: str) -> None:
    text, question, word = TEXTS[name]
    index = SentenceIndex(Document.of_text(text))
    best = index.sentences[index.best(index.ranked(question), 1)[0]]
    assert word in text[best.start : best.end]
    if name not in ("russian", "japanese"):
        assert language(text) == name


def test_a_neighbour_and_a_heading_help() -> None:
    text = (
        "# Opening hours\n\nThe baths open at noon.\n\n# Prices\n\nA child pays two crowns. Captain Wren sang. He fell."
    )
    index = SentenceIndex(Document.of_text(text))
    scores = dict(zip([text[s.start : s.end] for s in index.sentences], index.ranked("Captain?"), strict=True))
    assert scores["Captain Wren sang."] > scores["He fell."] > 0 == scores["The baths open at noon."]
    scores = dict(zip([text[s.start : s.end] for s in index.sentences], index.ranked("What prices?"), strict=True))
    assert scores["A child pays two crowns."] > 0 == scores["The baths open at noon."]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab c.", max_size=40), max_size=6), st.text(alphabet="ab c", max_size=20))
def test_scores_are_bm25_word_by_word(pieces: list[str], question: str) -> None:
    text = "\n\n".join(pieces)
    index = SentenceIndex(Document.of_text(text))
    query = index.query(question)
    own, covered = index.scores(query), index.covered(query)
    assert own.shape == covered[0].shape == index.ranked(question).shape == (len(index),)
    assert (covered[0] <= covered[1]).all()
    assert (covered[1] <= covered[2]).all()
    by_paragraph = {int(p): set(covered[2][index.paragraph == p].tolist()) for p in index.paragraph}
    assert all(len(values) == 1 for values in by_paragraph.values()), "a paragraph reaches all its words"
    asked = set(fold_words(find_words(question), index.language))
    for sentence, score, part in zip(index.sentences, own, covered[0], strict=True):
        has = set(fold_words(find_words(text[sentence.start : sentence.end]), index.language))
        assert (score > 0) == bool(has & {t for t, n in index.terms.items() if n in query.terms})
        assert 0 <= part <= 1.0001
        assert score == 0 or has & asked


def test_marks_of_kvcli_are_no_sentences_and_are_not_within_one() -> None:
    text = "[page 1]\nThe lamp is\n[page 2]\nin the tower."
    spans = (Span(0, 21, 9, "a.pdf", 1), Span(21, len(text), 30, "a.pdf", 2))
    index = SentenceIndex(Document(text, ("a.pdf",), "", 0, (), spans, 2))
    assert [text[s.start : s.end] for s in index.sentences] == ["The lamp is", "in the tower."]


@pytest.mark.parametrize("text", ["", " \n", "One.", "-----"])
def test_few_or_no_sentences(text: str) -> None:
    index = SentenceIndex(Document.of_text(text))
    assert len(index) == (text == "One.")
    assert index.best(index.ranked("One?"), 3) == [0] * len(index)
    assert np.isfinite(index.ranked("Two")).all()


QUESTIONS = ("Who sings?", "Is the sky blue in Cork?", "songs of men")
PIECES = [
    "The sky is blue.",
    "Anna sings.",
    "# Songs\n\n",
    "12 men",
    "\n\n",
    "Бабушка поёт.",
    "船長は猫を飼う。",
    "| a | 1 |\n",
]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Document]:
    """The documents whose index is made and not loaded; those of short texts are stored too."""
    made, build = list[Document](), SentenceIndex.__init__

    def count(index: SentenceIndex, document: Document) -> None:
        made.append(document)
        build(index, document)

    monkeypatch.setattr(sentences, "STORED_FROM", 0)
    monkeypatch.setattr(SentenceIndex, "__init__", count)
    return made


def quotes(document: Document, kept: DocumentCache | None) -> list[tuple[Quote, ...]]:
    """What another process would quote for each question."""
    sentence_index.cache_clear()
    return [QuoteSearch(document, question, kept=kept).quotes().quotes for question in QUESTIONS]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
def test_a_stored_index_gives_the_same_quotes(tmp_path: Path, built: list[Document], pieces: list[str]) -> None:
    document, kept = Document.of_text(" ".join(pieces)), DocumentCache(tmp_path)
    fresh, first = quotes(document, None), quotes(document, kept)
    count = len(built)
    assert fresh == first == quotes(document, kept)
    assert len(built) == count, "the second time it is loaded"


@pytest.mark.parametrize("text", ["", " \n", "One man sings.", "a" * 10_000_000 + " sings"])
def test_any_text_has_an_index_to_store(tmp_path: Path, built: list[Document], text: str) -> None:
    document, kept = Document.of_text(text), DocumentCache(tmp_path)
    first = quotes(document, kept)
    assert bool(first[0]) == ("sings" in text)
    assert (quotes(document, kept), len(built)) == (first, 1)


def test_a_damaged_index_or_one_of_another_text_is_made_again(tmp_path: Path, built: list[Document]) -> None:
    document, kept = Document.of_text("Anna sings. " * 9), DocumentCache(tmp_path)
    first, (entry,) = quotes(document, kept), kept.entries()
    whole = entry.path.read_bytes()
    about, _ = kept.load(entry.path)
    for number, content in enumerate([b"", whole[:40], whole[:-9], whole[:300] + b"?" + whole[301:], None], 2):
        if content is None:
            kept.save(entry.path, {"name": about["name"]}, b"PK no arrays")
        else:
            entry.path.write_bytes(content)
        assert (quotes(document, kept), len(built)) == (first, number)
    quotes(Document.of_text("Anna sang."), kept)
    quotes(Document("Anna sang.", ("a.pdf",), "", 0, (), (Span(0, 10, 5, "a.pdf", 1),)), kept)
    assert (len(kept.entries()), len(built)) == (3, 8)
    assert [e.name for e in kept.remove(["a.pdf"])] == ["a.pdf"]


def test_only_the_index_of_a_long_text_is_stored(tmp_path: Path) -> None:
    kept = DocumentCache(tmp_path)
    for length in (STORED_FROM - 1, STORED_FROM):
        sentence_index(Document.of_text(("Anna sings. " * length)[:length]), kept)
        assert len(kept.entries()) == (length == STORED_FROM)
