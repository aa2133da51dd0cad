"""Cases from rows of published benchmarks: L-Eval, LongBench prompts, InfiniteBench, KV retrieval, SQuAD, passages.

Texts, questions, metrics and answer lengths are the benchmark's; the words around them are those of
:class:`kvcli.engine.prompt.Prompt`. LongBench's few-shot and code prompts are raw, as in LongBench.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvcli.evaluate.case import Case, CaseQuestion, PoolPassage
from kvcli.evaluate.tasks import kv_retrieval

DataRow = dict[str, Any]

_LETTER = "Give only the letter of the right option."


@dataclass(frozen=True)
class RowShape:
    """One kind of row.

    Attributes:
        fields: fields that identify it; the first shape whose fields a row has applies.
        case: builds a case from the file's name and the row.
        task: its name in the table, from the same.
    """

    fields: frozenset[str]
    case: Callable[[str, DataRow], Case]
    task: Callable[[str, DataRow], str]


def shape(row: DataRow) -> RowShape | None:
    """Return the shape of a row, if it is known."""
    return next((found for found in _SHAPES if found.fields <= row.keys()), None)


def passage(row: DataRow) -> PoolPassage | None:
    """Build a passage with its questions from a row of SQuAD or of ``title, text, question, answers``."""
    if {"context", "qas"} <= row.keys():
        asked = tuple((qa["question"], _distinct(a["text"] for a in qa["answers"])) for qa in row["qas"])
        return PoolPassage(str(row.get("title", "")).replace("_", " "), row["context"], asked)
    if {"text", "question", "answers"} <= row.keys():
        return PoolPassage(str(row.get("title", "")), row["text"], ((row["question"], tuple(row["answers"])),))
    return None


def _distinct(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


# --- passages and pairs ---


def _squad(_stem: str, row: DataRow) -> Case:
    found = passage(row)
    assert found is not None
    questions = tuple(CaseQuestion(q, a, "f1") for q, a in found.asked if a)
    return Case(found.text, questions, max_tokens=32)


def _pairs(_stem: str, row: DataRow) -> Case:
    text = kv_retrieval.show([(k, v) for k, v in row["ordered_kv_records"]])
    return Case(text, (kv_retrieval.ask(row["key"], row["value"]),), max_tokens=kv_retrieval.ANSWER)


# --- L-Eval ---


def _leval(_stem: str, row: DataRow) -> Case:
    exam = row.get("evaluation") == "exam"
    asked = [
        _exam(q, a) if exam else _short(row, q, a) for q, a in zip(row["instructions"], row["outputs"], strict=True)
    ]
    return Case(row["input"], tuple(asked), max_tokens=24 if exam else 64)


def _short(row: DataRow, question: str, answer: str) -> CaseQuestion:
    return CaseQuestion(question, (answer,), "rouge" if row.get("evaluation") == "rouge" else "f1")


def _exam(question: str, answer: str) -> CaseQuestion:
    choices = tuple(text.strip() for text in re.findall(r"(?:^|\n)\s*\(?[A-F][.)]\)?\s*(.+)", question))
    if truth := re.match(r"(true|false)\b", answer, re.IGNORECASE):
        return CaseQuestion(question, (truth[1],), "truth")
    bracketed = re.match(r"\(([A-F])\)", answer)
    if bracketed or re.fullmatch(r"[A-F]+", answer.strip()):
        letters = bracketed[1] if bracketed else answer.strip()
        return CaseQuestion(f"{question}\n{_LETTER}", (letters,), "choice", choices)
    return CaseQuestion(question, (answer,), "any")


# --- InfiniteBench ---


def _infinite(stem: str, row: DataRow) -> Case:
    gold = row["answer"]
    answers = tuple(map(str, gold)) if isinstance(gold, list) else (str(gold),)
    question = f"{row.get('prompt', '').strip()}\n{row['input']}".strip()
    options = tuple(map(str, row.get("options") or ()))
    tags = {"depth": str(row["depth"])} if "depth" in row else {}
    if options and answers[0] in options:
        shown = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEF", options, strict=False))
        letter = "ABCDEF"[options.index(answers[0])]
        asked = CaseQuestion(
            f"{question}\n{shown}\nGive only the letter of the right option.", (letter,), "choice", options
        )
    elif answers[0].isdigit():
        asked = CaseQuestion(question, answers, "first_number")
    else:
        asked = CaseQuestion(question, answers, "contains" if "kv" in stem else "any")
    return Case(row["context"], (asked,), max_tokens=50, tags=tags)


# --- LongBench prompts ---


@dataclass(frozen=True)
class _Kind:
    """A LongBench task: its metric, the maximum answer length, and the words that begin the question."""

    metric: str
    max_tokens: int
    marks: tuple[str, ...]
    raw: bool = False
    first_line: bool = False


_PASSAGES = ("\n\nAnswer the question based on the given passages.",)
_LONGBENCH = {
    "narrativeqa": _Kind("f1", 128, ("\n\nNow, answer the question based on the story",)),
    "qasper": _Kind("f1", 128, (*_PASSAGES, "\n\nNow, answer the question based on the above article")),
    "multifieldqa_en": _Kind("f1", 64, ("\n\nNow, answer the following question based on the above text",)),
    "multifieldqa_zh": _Kind("f1", 64, ("\n\n现在请基于上面的文章回答下面的问题",)),
    "hotpotqa": _Kind("f1", 32, _PASSAGES),
    "2wikimqa": _Kind("f1", 32, _PASSAGES),
    "musique": _Kind("f1", 32, _PASSAGES),
    "dureader": _Kind("rouge", 128, ("\n\n请基于上述文章回答下面的问题",)),
    "gov_report": _Kind("rouge", 512, ("\n\nNow, write a one-page summary",)),
    "qmsum": _Kind("rouge", 512, ("\n\nNow, answer the query based on the above meeting transcript",)),
    "multi_news": _Kind("rouge", 512, ("\n\nNow, write a one-page summary",)),
    "vcsum": _Kind("rouge", 512, ("\n\n会议总结",)),
    "trec": _Kind("classes", 64, ("\nQuestion:",), raw=True, first_line=True),
    "triviaqa": _Kind("f1", 32, ("\nQuestion:",), raw=True, first_line=True),
    "samsum": _Kind("rouge", 128, ("\nDialogue:",), raw=True, first_line=True),
    "lsht": _Kind("classes", 64, ("\n新闻内容",), raw=True, first_line=True),
    "passage_count": _Kind("count", 32, ("\n\nPlease enter the final count",)),
    "passage_retrieval_en": _Kind("paragraph", 32, ("\n\nThe following is an abstract",)),
    "passage_retrieval_zh": _Kind("paragraph", 32, ("\n\n下面是一个摘要",)),
    "lcc": _Kind("code", 64, ("Next line of code:",), raw=True),
    "repobench-p": _Kind("code", 64, ("Next line of code:",), raw=True),
}


_ANSWER = re.compile(r"\s*(?:Answer|Summary|回答|会议总结)\s*[:：]\s*$")  # the template adds its own answer prefix


def _longbench(_stem: str, row: DataRow) -> Case:
    kind = _LONGBENCH[row["task"]]
    prompt, gold = row["prompt"], row["gold"]
    classes: tuple[str, ...] = ()
    if isinstance(gold, dict):
        gold, classes = gold["answers"], tuple(gold["all_classes"])
    at = max(prompt.rfind(mark) for mark in kind.marks)
    if at <= 0:
        raise ValueError("its prompt has no question where LongBench has it")
    question = prompt[at:] if kind.raw else _ANSWER.sub("", prompt[at:]).strip()
    asked = CaseQuestion(question or "总结会议的内容。", tuple(gold), kind.metric, classes, kind.first_line)
    return Case(prompt[:at], (asked,), max_tokens=kind.max_tokens, raw=kind.raw)


def _by_stem(stem: str, _row: DataRow) -> str:
    return stem


_SHAPES = (
    RowShape(frozenset({"instructions", "outputs", "input"}), _leval, _by_stem),
    RowShape(frozenset({"task", "prompt", "gold"}), _longbench, lambda _, row: str(row["task"])),
    RowShape(frozenset({"context", "input", "answer"}), _infinite, _by_stem),
    RowShape(frozenset({"ordered_kv_records", "key", "value"}), _pairs, _by_stem),
    RowShape(frozenset({"context", "qas"}), _squad, _by_stem),
    RowShape(frozenset({"text", "question", "answers"}), _squad, _by_stem),
)
