"""Quotes are the document's own words, the same from any reading, and say whether they hold the answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcli
from kvcli.documents.document import Document
from kvcli.errors import UsageError
from kvcli.events import Answer, Quote, Quotes, Reread, Token
from kvcli.models.encoder import load_encoder
from kvcli.retrieval.quotes import (
    UNLIKELY,
    QuoteSearch,
    answered,
    candidates_by_words,
    names_before,
    shared_words,
    supports,
)
from kvcli.retrieval.sentences import SentenceIndex
from tests.e2e.conftest import save_tiny
from tests.unit.models.test_encoder import made as save_encoder

TEXT = "# Harbour\n\nThe lamp burns at night. " + " ".join(f"House {n} is blue and has {n} doors." for n in range(40))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return kvcli.load_model(str(save_tiny(tmp_path_factory.mktemp("model"))), find_heads=False)


def quoted(quotes: Sequence[Quote]) -> str:
    """The letters of quotes, in the order of the text."""
    return "".join("".join(q.text.split()) for q in sorted(quotes, key=lambda q: q.char_start))


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abc .\n", max_size=40), max_size=5), st.text(alphabet="abc ", max_size=12))
def test_every_quote_is_verbatim_at_its_place(pieces: list[str], question: str) -> None:
    text = "\n\n".join(pieces)
    document = Document.of_text(text)
    for answer in (None, "", "a b. c"):
        found = QuoteSearch(document, question).quotes(answer)
        assert len(found.quotes) <= 3
        assert all(a.char_end <= b.char_start or b.char_end <= a.char_start for a, b in combinations(found.quotes, 2))
        assert not found.by_model
        for quote in found.quotes:
            assert quote.text == text[quote.char_start : quote.char_end]
            assert 0 <= quote.score <= 1
            assert quote.line == text.count("\n", 0, quote.char_start) + 1
    assert found.found == (found.likely >= UNLIKELY)


@settings(max_examples=10, deadline=None)
@given(text=st.text(max_size=200), question=st.text(min_size=1, max_size=40))
def test_the_model_ranks_any_text_and_question(model: Any, text: str, question: str) -> None:
    pipeline = kvcli.Pipeline(model, "full")
    by_words = pipeline.quotes(text, question, count=20, by_model=False)
    by_model = pipeline.quotes(text, question, count=20)
    assert quoted(by_words) == quoted(by_model), "the same sentences, joined or not"
    assert by_model == pipeline.quotes(text, question, count=20)
    assert all(0 <= quote.score <= 1 for quote in by_model)


@pytest.mark.parametrize("classes", [0, 1])
def test_an_encoder_ranks_in_the_place_of_the_model(model: Any, tmp_path: Path, classes: int) -> None:
    folder = str(save_encoder(tmp_path, classes=classes))
    pipeline, encoder = kvcli.Pipeline(model, "full", rerank=folder), load_encoder(folder, device="cpu")
    text = "The ship sails at night. The captain is in the harbour.\n\nThe red ship sails in winter."
    question = "When does the ship sail?"
    by_words = pipeline.quotes(text, question, by_model=False)
    ranked = pipeline.quotes(text, question)
    assert quoted(ranked) == quoted(by_words)
    assert [q.score for q in ranked] == sorted((q.score for q in ranked), reverse=True)
    scores = encoder.scores(question, [text[:24], text[57:]])
    search = QuoteSearch(Document.of_text(text), question)
    before = {c.number: c.share for c in search.candidates}
    search.rank_by_encoder(encoder)
    after = {c.number: c.share for c in search.candidates}
    better = max((0, 2), key=lambda n: scores[n // 2])
    assert after[better] / before[better] > after[2 - better] / before[2 - better], "its score moves the share"


@pytest.mark.parametrize(
    ("gap", "one"),
    [(" ", True), ("\n", True), ("\n\n", False), ("\n\n# Ships\n\n", False), (" It rained. ", False), ("\n- ", False)],
)
def test_neighbours_that_words_do_not_decide_between_are_one_quote(gap: str, one: bool) -> None:
    first, second = "The red ship of Anna Lund sails in winter.", "Anna Lund sails the red ship to the north."
    text = f"{first}{gap}{second}\n\nA harbour is there."
    question = "Where does the red ship of Anna Lund sail?"
    found = QuoteSearch(Document.of_text(text), question).quotes().quotes
    assert sum(first in q.text for q in found) == sum(second in q.text for q in found) == 1
    assert any(q.text == f"{first}{gap}{second}" for q in found) is one
    apart = QuoteSearch(Document.of_text(f"{first}{gap}It has a red sail."), question)
    assert apart.quotes().quotes[0].text == first, "a neighbour that is far less likely is not quoted with it"


def test_saved_and_fresh_readings_give_the_same_quotes(model: Any, tmp_path: Path) -> None:
    pipeline = kvcli.Pipeline(model, "full", cache=kvcli.CacheDirectory(tmp_path))
    fresh = pipeline.prefill(TEXT)
    saved = pipeline.prefill(TEXT)
    assert (fresh.cache, saved.cache) == ("miss", "hit")
    question = "How many doors has house 7?"
    assert pipeline.quotes(fresh, question) == pipeline.quotes(saved, question) == pipeline.quotes(TEXT, question)
    assert "House 7 is" in pipeline.quotes(saved, question)[0].text


def test_quotes_come_with_an_answer(model: Any) -> None:
    pipeline = kvcli.Pipeline(model, "full")
    context = pipeline.prefill(TEXT)
    events = list(pipeline.ask(context, "Which house has 7 doors?", max_tokens=4, quotes=2))
    kinds = [type(event) for event in events]
    assert (kinds[0], kinds[-2:]) == (Quotes, [Quotes, Answer])
    assert Token in kinds[1:-2]
    found = [event for event in events if isinstance(event, Quotes)]
    assert [q.by_model for q in found] == [False, True]
    assert all(q.supports is None for q in found[0].quotes)
    plain = list(pipeline.ask(context, "Which house has 7 doors?", max_tokens=4))
    assert plain[-1] == events[-1] or plain[-1].text == events[-1].text  # type: ignore[union-attr]
    assert not any(isinstance(event, Quotes) for event in plain)


def test_an_answer_from_quotes_sees_three_sentences_and_is_one_line(model: Any) -> None:
    pipeline = kvcli.Pipeline(model, "full")
    question = "Which house has 7 doors?"
    events = list(pipeline.ask(pipeline.prefill(TEXT), question, max_tokens=9, from_quotes=True))
    reread = events[0]
    assert isinstance(reread, Reread)
    assert reread.alone
    best = pipeline.quotes(TEXT, question)[0]
    start, end = reread.passages[-1]
    assert len(reread.passages) == 3
    assert best.char_start <= start < end <= best.char_end, "the likeliest is last"
    assert not any(isinstance(event, Quotes) for event in events)
    other = TEXT.replace("The lamp burns at night.", "It rained all day.")
    again = list(pipeline.ask(pipeline.prefill(other), question, max_tokens=9, from_quotes=True))
    assert again[-1].text == events[-1].text, "only the sentences count"  # type: ignore[union-attr]
    assert "\n" not in again[-1].text  # type: ignore[union-attr]
    usual = list(pipeline.ask(pipeline.prefill(TEXT), "Who won the regatta of Cork?", max_tokens=4, from_quotes=True))
    assert not any(isinstance(event, Reread) for event in usual)


def test_an_answer_from_quotes_needs_no_prefill_and_is_the_same(model: Any) -> None:
    pipeline = kvcli.Pipeline(model, "full")
    question = "Which house has 7 doors?"
    unread = pipeline.unread(TEXT, question)
    assert unread is not None
    assert (unread.context, unread.tokens) == (None, 0)
    for options in ({}, {"verbatim": True}):
        asked = {"max_tokens": 20, "from_quotes": True, **options}
        from_text = pipeline.answer(unread, question, **asked)
        assert from_text.text == pipeline.answer(pipeline.prefill(TEXT), question, **asked).text
        sentences = [" ".join(TEXT[a:b].split()) for a, b in from_text.passages]
        assert len(sentences) == 3
    assert any(from_text.text.strip() in sentence for sentence in sentences), "words of a sentence"
    assert pipeline.unread(TEXT, "Who won the regatta of Cork?") is None
    with pytest.raises(UsageError):
        pipeline.answer(unread, question)


def test_a_measured_model_that_keeps_the_text_is_asked_by_worked_examples(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, instruction = "Which house has 7 doors?", "Name the house that has 7 doors."
    full, text = kvcli.Pipeline(model), TEXT[:320]

    def alone(pipeline: kvcli.Pipeline, asked: str = question, **options: Any) -> bool:
        events = list(pipeline.ask(pipeline.prefill(text), asked, max_tokens=2, from_quotes=None, **options))
        return any(isinstance(event, Reread) and event.alone for event in events)

    assert not alone(full), "a model that was not measured"
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (model.name,))
    assert alone(full)
    assert not any(isinstance(event, Reread) for event in full.ask(full.prefill(text), question, max_tokens=2))
    asked = {"max_tokens": 9, "quotes": 2}
    by_default = full.answer(full.prefill(text), question, from_quotes=None, **asked)
    assert by_default.text == full.answer(full.prefill(text), question, from_quotes=True, by_model=False, **asked).text
    assert not alone(full, instruction)
    assert not alone(full, "Who won the regatta of Cork?"), "no sentence seems to answer"
    more: dict[str, Any]
    for more in ({"history": [("Who?", "Anna.")]}, {"stop": ("x",)}, {"again": ["It rained."]}):
        assert not alone(full, **more)
    for changed in ({"raw": True}, {"system": "Be brief."}, {"after": ""}, {"before": "Please. "}, {"recipe": "full"}):
        assert not alone(kvcli.Pipeline(model, **changed)), changed
    assert not alone(kvcli.Pipeline(model, budget=64)), "something was evicted"


def test_an_answer_is_supported_by_the_sentence_that_has_its_words() -> None:
    document = Document.of_text("Captain Wren sailed in May. Captain Hale sailed in 1911 to Cork. Captains sail.")
    quotes = QuoteSearch(document, "When did the captain sail?").quotes("In 1911.").quotes
    assert quotes[0].supports is True
    assert "1911" in quotes[0].text
    assert not any(q.supports for q in QuoteSearch(document, "When did the captain sail?").quotes("In 1888.").quotes)
    assert supports("He sailed in 1911.", "When?", "It was 1911. Perhaps not.", "english")
    assert not supports("He sailed in 1911.", "When did he sail?", "", "english")


@pytest.mark.parametrize("question", ["How long is the guarantee?", "Which lamps are covered?"])
def test_a_question_of_few_words_of_the_text_is_answered_by_it(question: str) -> None:
    text = "Close the tap.\n\nThe guarantee is two years. Lamps are not covered.\n\nThe service has the number 0800."
    assert QuoteSearch(Document.of_text(text), question).quotes().found


def test_the_words_of_a_short_text_say_more_than_those_of_a_long_one() -> None:
    """Some sentence of a long text has most words of any question, so the same match is the weaker evidence there."""
    facts = "The guarantee of the lamp is two years. Close the tap in winter."
    for question in ("How long is the guarantee?", "When should the tap be closed?"):
        candidates = candidates_by_words(SentenceIndex(Document.of_text(facts)), question)
        chances = [answered(candidates, n) for n in (2, 20, 200, 2000, 20_000)]
        assert chances == sorted(chances, reverse=True)
        assert 0 < chances[-1] < chances[0] < 1
    assert answered([], 2) == 0


def test_a_question_about_another_text_finds_nothing() -> None:
    document = Document.of_text(TEXT)
    assert QuoteSearch(document, "How many doors has house 7?").quotes().found
    for question in ("Who won the regatta of Cork?", "???", ""):
        found = QuoteSearch(document, question).quotes()
        assert not found.found
        assert found.likely < UNLIKELY


@pytest.mark.parametrize(
    "text", ["", " \n\n ", "The lamp burns.", "lamp burns " * 50_000, "a" * 500_000 + " lamp burns"]
)
def test_a_text_of_no_sentence_of_one_and_without_any_full_stop(model: Any, text: str) -> None:
    found = kvcli.Pipeline(model, "full").find_quotes(text, "Does the lamp burn?", answer="It burns.")
    assert bool(found.quotes) == found.found == ("lamp" in text)
    for quote in found.quotes:
        assert quote.text == text[quote.char_start : quote.char_end]
        assert len(quote.text) <= 1000
        assert quote.supports == ("burns" in quote.text)


def test_a_follow_up_takes_its_names_from_the_conversation() -> None:
    earlier = ("Who is Captain Wren?", "The ship was bought by Wren in 1911.")
    assert names_before("When did she die?", earlier) == ["Captain", "Wren", "1911"]
    assert names_before("When did Hale die?", earlier) == []
    assert names_before("Did he meet Hale?", earlier) == []
    assert names_before("Who died?", earlier) == []
    index = SentenceIndex(Document.of_text("Hale was born in Cork. Wren was born in Hull. She was a captain."))
    question = "Where was she born?"
    assert candidates_by_words(index, question, names=names_before(question, earlier))[0].number == 1


def test_names_of_the_conversation_count_less_than_the_questions_words() -> None:
    text = "Captain Wren of Hull owns the Heron. She sailed in May. Hale sailed in June. It rained."
    index = SentenceIndex(Document.of_text(text))
    names = names_before("When did she sail?", ["Which ship does Captain Wren of Hull own?"])
    assert candidates_by_words(index, "When did she sail?", names=names)[0].number == 1


def test_the_questions_words_are_marked_in_any_form() -> None:
    text = "The houses were bought."
    assert [text[a:b] for a, b in shared_words(text, "Who bought the house?", "english")] == ["houses", "bought"]
