"""Metrics against values worked out by hand from the benchmarks' definitions."""

from __future__ import annotations

import pytest

from kvcli.evaluate.case import CaseQuestion
from kvcli.evaluate.metrics import METRICS, letters, score


def of(metric: str, answer: str, *gold: str, **more: object) -> float:
    return score(answer, CaseQuestion("?", gold, metric, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "answer", "gold", "expected"),
    [
        ("contains", "It is 4711.", ["4711"], 1),
        ("contains", "It is 47110.", ["4711"], 0),
        ("contains", "called ADA  Bell, of course", ["Ada Bell"], 1),
        ("contains", "", ["x"], 0),
        ("all", "red and blue", ["red", "blue", "green", "grey"], 0.5),
        ("any", "In the United States, I think.", ["America", "The United States"], 1),
        ("any", "In the Unite", ["United States"], 0),
        ("first_number", "The pass key is 52601, not 9.", ["52601"], 1),
        ("first_number", "9, or 52601", ["52601"], 0),
        ("exact", "The Cat!", ["a cat"], 1),
        ("exact", "The cats", ["a cat"], 0),
        ("f1", "the big red cat", ["a red cat"], 2 * 2 / (3 + 2)),
        ("f1", "dog", ["a red cat", "the dog"], 1),
        ("f1", "增长了百分", ["增长百分"], 2 * 4 / (5 + 4)),
        ("rouge", "police killed the gunman", ["police kill the gunman"], 0.75),
        ("rouge", "the gunman police killed", ["police killed the gunman"], 0.5),
        ("code", "# a comment\nreturn x\nmore", ["return x"], 1),
        ("code", "abcd", ["bcde"], 0.75),
        ("count", "There are 46 of 50.", ["46"], 0.5),
        ("paragraph", "Paragraph 19", ["Paragraph 19"], 1),
        ("paragraph", "段落5", ["段落5"], 1),
        ("paragraph", "Paragraph 1", ["Paragraph 19"], 0),
        ("truth", "False. The story says true things.", ["False"], 1),
        ("truth", "I do not know", ["True"], 0),
        ("choice", "B", ["B"], 1),
        ("choice", "B", ["BD"], 0.25),
        ("choice", "A", ["BD"], 0),
        ("choice", "BDA", ["BD"], 0),
    ],
)
def test_a_score(metric: str, answer: str, gold: list[str], expected: float) -> None:
    assert of(metric, answer, *gold) == pytest.approx(expected)


def test_every_metric_gives_full_marks_for_the_gold_answer_and_none_for_silence() -> None:
    for name in METRICS:
        gold = {"choice": "B", "truth": "True", "paragraph": "Paragraph 3", "count": "3", "first_number": "3"}
        right = gold.get(name, "some words")
        assert of(name, right, right, choices=("some words",) if name == "classes" else ()) == 1, name
        assert of(name, "", right) == 0, name


def test_a_class_named_together_with_others_counts_in_part() -> None:
    classes = ("Date", "Date of birth", "Food")
    assert of("classes", "Date of birth", "Date of birth", choices=classes) == 1
    assert of("classes", "Date of birth or Food", "Date of birth", choices=classes) == 0.5
    assert of("classes", "Food", "Date", choices=classes) == 0


def test_only_the_first_line_counts_where_a_few_shot_prompt_makes_the_model_go_on() -> None:
    assert of("f1", "\nParis\nQuestion: and then?", "Paris", first_line=True) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(C) They were tired", "C"),
        ("B. Paris", "B"),
        ("B and D", "BD"),
        ("A, C", "AC"),
        ("BD.", "BD"),
        ("The right answer is D because", "D"),
        ("A man came in", ""),
        ("I think that it is in Paris.", "B"),
        ("Dogs are animals", ""),
        ("", ""),
    ],
)
def test_letters(answer: str, expected: str) -> None:
    assert letters(answer, ("London", "Paris", "Rome")) == expected
