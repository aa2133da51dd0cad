"""Every generator: any length, the same case for the same words, and the answer where it belongs."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from kvcli.errors import InputError, UsageError
from kvcli.evaluate import vocabulary
from kvcli.evaluate.build_cases import lengths
from kvcli.evaluate.case import Case, CaseRequest, PassagePool, PoolPassage
from kvcli.evaluate.haystack import Haystack, split
from kvcli.evaluate.metrics import score
from kvcli.evaluate.tasks import TASKS, lookup, needle
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.retaining_heads import facts

LENGTHS = (1024, 4096, 20000)
MADE = [name for name, task in TASKS.items() if task.make is not None and task.sized]
PASSAGES = PassagePool(
    tuple(
        PoolPassage(
            f"Title {n}",
            f"In {1000 + n} the mill of village {n} burned down. " * 9,
            ((f"When, {n}?", (f"{1000 + n}",)),),
        )
        for n in range(900)
    )
)


def make(
    name: str, counter: TokenCounter, *, length: int = 4096, number: int = 0, seed: int = 0, text: str | None = None
) -> Case:
    maker = TASKS[name].make
    assert maker is not None
    return maker(CaseRequest(name, number, length, seed, counter, Haystack(counter, text), PASSAGES))


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_is_as_long_as_was_asked_for(name: str, length: int, counter: TokenCounter) -> None:
    tokens = counter.document(make(name, counter, length=length).text)
    assert tokens <= length
    assert tokens > length - 250


@pytest.mark.parametrize("name", [*MADE, "gold"])
def test_a_case_depends_on_seed_number_and_length_alone(name: str, counter: TokenCounter) -> None:
    assert make(name, counter, number=3) == make(name, counter, number=3)
    others = [
        make(name, counter),
        make(name, counter, number=1),
        make(name, counter, seed=1),
        make(name, counter, number=2),
    ]
    assert len({case.text for case in others}) == len(others)


@pytest.mark.parametrize("name", MADE)
def test_a_reader_who_quotes_the_text_is_right(name: str, counter: TokenCounter) -> None:
    case = make(name, counter)
    for question in case.questions:
        assert question.gold
        assert all(re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", case.text) for gold in question.gold)
        assert score(", ".join(question.gold), question) == 1
        assert score("I cannot tell.", question) == 0


@pytest.mark.parametrize("name", [name for name in MADE if TASKS[name].hides])
def test_facts_are_hidden_in_a_persons_own_text(name: str, counter: TokenCounter, book: str) -> None:
    text = make(name, counter, length=2048, text=book).text
    rest = [piece.strip() for piece in split(text) if piece.strip() not in book]
    assert 1 <= len(rest) <= 12
    assert all(piece in text for piece in rest)
    starts = {make(name, counter, length=2048, text=book, number=n).text[:300] for n in range(6)}
    assert len(starts) > 3


def test_depths_cover_the_text_however_many_cases_there_are(counter: TokenCounter) -> None:
    def depth(number: int) -> float:
        case = make("passkey", counter, length=20000, number=number)
        return case.text.index(case.questions[0].gold[0]) / len(case.text)

    quarters = Counter(int(4 * depth(n)) for n in range(20))
    assert all(3 <= quarters[q] <= 7 for q in range(4))


def test_a_needle_stands_between_sentences(counter: TokenCounter, book: str) -> None:
    for number in range(12):
        case = make("needle", counter, length=3000, text=book, number=number)
        value = case.questions[0].gold[0]
        (line,) = (piece for piece in split(case.text) if value in piece)
        before = case.text[: case.text.index(line)].rstrip()
        assert not before or before[-1] in '.!?"'
        assert not before.endswith(("Mr.", "No."))


def test_values_take_turns(counter: TokenCounter) -> None:
    kinds = [make("needle", counter, number=n).tags["values"] for n in range(6)]
    assert kinds == ["number", "name", "word"] * 2


def test_other_facts_of_the_same_kind_lead_astray(counter: TokenCounter) -> None:
    case = make("multikey", counter)
    sentence = next(piece for piece in split(case.text) if case.questions[0].gold[0] in piece)
    start = sentence.split(" ")[0]
    assert sum(piece.startswith(start) for piece in split(case.text)) >= 4


def test_eight_facts_eight_questions(counter: TokenCounter) -> None:
    case = make("multiquery", counter)
    assert len(case.questions) == 8
    assert len({q.text for q in case.questions}) == len({q.gold for q in case.questions}) == 8


def test_a_chain_of_variables_holds_the_number_it_is_asked_for(counter: TokenCounter) -> None:
    case = make("variables", counter)
    values: dict[str, str] = {}
    for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", case.text):
        values[name] = values.get(value, value)
    asked = re.search(r"\d{5}", case.questions[0].text)
    assert asked
    assert {name for name, value in values.items() if value == asked[0]} == set(case.questions[0].gold)
    assert len(set(values.values())) == 2


@pytest.mark.parametrize(("name", "pattern"), [("common", r"\. (\w+)"), ("frequent", r"(?<=[ ])(\w+)")])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_most_frequent_words_are_the_most_frequent(
    name: str, pattern: str, length: int, counter: TokenCounter
) -> None:
    case = make(name, counter, length=length)
    _, _, text = case.text.partition(":")
    counts = Counter(re.findall(pattern, text))
    gold = set(case.questions[0].gold)
    assert min(counts[word] for word in gold) >= max(n for word, n in counts.items() if word not in gold)


def test_one_document_of_many_has_the_answer(counter: TokenCounter) -> None:
    case, alone = make("multidoc", counter), make("gold", counter)
    (answer,) = case.questions[0].gold
    documents = case.text.strip().split("\n")
    assert len(documents) == int(case.tags["documents"]) > 10
    assert sum(answer in text.partition(")")[2] for text in documents) == 1
    assert alone.questions == case.questions
    assert alone.text.partition("]")[2] in case.text


def test_a_document_that_is_too_short_says_how_long_it_is(counter: TokenCounter, book: str) -> None:
    tokens = counter.document(book)
    with pytest.raises(InputError, match=f"{tokens:,} tokens, fewer than the 100,000"):
        make("needle", counter, text=book, length=100_000)
    assert counter.document(make("needle", counter, text=book, length=tokens).text) > 0.98 * tokens


@pytest.mark.parametrize("name", MADE)
def test_too_few_tokens_are_refused(name: str, counter: TokenCounter) -> None:
    with pytest.raises(UsageError, match="too few"):
        make(name, counter, length=12)


def test_too_few_passages_are_refused(counter: TokenCounter) -> None:
    with pytest.raises(InputError, match="900 passages are"):
        make("multidoc", counter, length=200_000)


def test_nothing_is_measured_that_heads_are_trained_on() -> None:
    trained = {*facts.PLACES, *facts.FIRST, *facts.LAST, *facts.THINGS, *facts.COLOURS, *facts.TRADES}
    assert not trained & {*vocabulary.PLACES, *vocabulary.FIRST, *vocabulary.LAST, *vocabulary.WORDS}

    def skeleton(sentence: str) -> tuple[str, ...]:
        return tuple(re.sub(r"\{\w\}", "_", sentence).lower().rstrip(".?").split())

    shapes = {skeleton(text) for _, sentence, question in facts._SHAPES for text in (sentence, question)}
    own = {skeleton(text) for shape in needle.SHAPES for text in (shape.sentence, shape.question)}
    assert not shapes & own


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'passkey'.*needle, multikey") as refusal:
        lookup("pass-key")
    assert refusal.value.hint == "kvcli eval passkey"


def test_lengths() -> None:
    assert lengths("4K, 8k,4096,1M,100") == [4096, 8192, 1048576, 100]
    for wrong in ("", ",", "4G", "x", "0", "-1", "4.5K"):
        with pytest.raises(UsageError, match="--lengths"):
            lengths(wrong)
