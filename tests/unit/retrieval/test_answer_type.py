"""What a question asks for is told in six languages, and is neutral if nothing is known."""

import pytest

from kvcli.documents.document import Document
from kvcli.retrieval.answer_type import expected, has_type
from kvcli.retrieval.quotes import candidates_by_words
from kvcli.retrieval.sentences import SentenceIndex


@pytest.mark.parametrize(
    ("language", "kind", "question", "with_answer", "without"),
    [
        ("english", "number", "How many doors has house 7?", "House 7 has twelve doors.", "House 7 has doors."),
        ("german", "number", "Wie viele Türen hat Haus 7?", "Haus 7 hat zwölf Türen.", "Haus 7 hat Türen."),
        ("french", "number", "Combien de portes ?", "Il y a 12 portes.", "Il y a des portes."),
        ("spanish", "time", "¿Cuándo llegó?", "Llegó en enero.", "Llegó tarde."),
        ("italian", "time", "Quando arrivò?", "Arrivò nel 1901.", "Arrivò tardi."),
        ("russian", "time", "Когда он приехал?", "Он приехал в марте, 3 марта.", "Он приехал."),
        ("english", "name", "Who won the cup in Cork?", "In Cork the cup went to Wren.", "In Cork the cup was won."),
        ("russian", "name", "Кто приехал?", "Тогда приехал Иван.", "Тогда приехал он."),
        ("spanish", "name", "¿Dónde vive?", "Ella vive en Vigo.", "Ella vive lejos."),
    ],
)
def test_a_sentence_has_what_the_question_asks_for(
    language: str, kind: str, question: str, with_answer: str, without: str
) -> None:
    assert expected(question) == kind
    assert has_type(expected(question), with_answer, question, language)
    assert not has_type(expected(question), without, question, language)


@pytest.mark.parametrize("question", ["", "Why?", "Is it due in June?", "Warum?", "なぜですか", "Whoever sings"])
def test_other_questions_expect_nothing(question: str) -> None:
    assert expected(question) is None
    assert not has_type(expected(question), "Anna Berg sang 12 songs in May.", question, "english")


def test_german_nouns_are_no_names() -> None:
    assert not has_type("name", "Das tat der Hund.", "Wer tat das?", "german")


def test_the_sentence_with_a_number_is_before_one_with_as_many_of_the_words() -> None:
    text = "The tower of Hull has steps and a bell. The tower of Hull has 212 steps."
    index = SentenceIndex(Document.of_text(text))
    assert candidates_by_words(index, "How many steps has the tower?")[0].number == 1
    assert candidates_by_words(index, "What is the bell of the tower?")[0].number == 0
