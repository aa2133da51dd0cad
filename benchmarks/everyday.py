"""What is written about everyday questions: right, half right or wrong, by keys that were written by hand.

    python -m benchmarks.everyday --out everyday.jsonl
    python -m benchmarks.everyday --out squad.jsonl --squad squad_second_half.json --cases 60 --ways examples,words
    python -m benchmarks.everyday --out needles.jsonl --needles book.txt --length 8192 --cases 12 --ways ask,ranked
    python -m benchmarks.everyday --out chat.jsonl --follow-ups --ways chat,chattemplate

The 60 questions are about twelve short documents in ``benchmarks/everyday/``: a licence, minutes, a lease, a manual
page, source code … Each line of ``questions.jsonl`` has regular expressions, ignoring case: an answer is right if one
of ``right`` is found in it, and half right if one of ``half`` is. With ``--squad`` an answer is right if it contains an
answer of the data set, without articles and punctuation. With ``--needles`` each text is a part of a book with four
facts of one kind, and a question in other words about one of them. With ``--follow-ups`` the 32 questions are those of
``follow_ups.jsonl``: each continues another question ("And when is it due?"), which a chat is asked first. Questions
are asked in an order drawn by a seed, each in all ways. Cases are appended to the file; a second run adds what is
missing. At the end, rows for ``docs/results/data`` go to standard output.

Ways: ``ask`` (the chat template over the document, with the rule of the default task), ``norule`` and ``few`` (the same
without it, or with "Answer in a few words."), ``ranked`` (worked examples, and the three best sentences as the model
ranks them), ``examples`` (the same, ranked by words alone), ``rankedwords`` and ``words`` (the same two, and the answer
is successive words of one of them). These four ways leave out questions that no sentence seems to answer: there kvcli
answers as ``ask`` does. ``chat`` and ``chattemplate`` are turns of a chat: in words of a sentence if one seems to
answer, and always by the chat template.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import kvcli
from benchmarks.provenance import provenance
from kvcli.chat.setup import open_chat
from kvcli.documents.document import Document
from kvcli.engine.prompt import ANSWER_RULE
from kvcli.evaluate import datasets
from kvcli.evaluate.case import CaseRequest
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.metrics import normalise
from kvcli.evaluate.quotes import needle_case, sample, squad_cases
from kvcli.evaluate.token_counter import TokenCounter

FOLDER = Path(__file__).parent / "everyday"
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name in tables, words after a question, options of an answer
    "ask": ("`kvcli ask`", ANSWER_RULE, {}),
    "norule": ("no rule", "", {}),
    "few": ('"Answer in a few words."', "\nAnswer in a few words.", {}),
    "ranked": ("worked examples, three sentences, ranked by the model", "", {"from_quotes": True, "verbatim": False}),
    "examples": ("worked examples, three sentences", "", {"from_quotes": True, "by_model": False, "verbatim": False}),
    "rankedwords": ("words of a sentence, ranked by the model", "", {"from_quotes": True, "verbatim": True}),
    "words": ("the same, words of a sentence", "", {"from_quotes": True, "by_model": False, "verbatim": True}),
    "chat": ("`chat`", ANSWER_RULE, {}),
    "chattemplate": ("`chat`, chat template", ANSWER_RULE, {"recipe": "locret(budget=1024)"}),
}


@dataclass(frozen=True)
class Question:
    """One question, its document's text, and what judges an answer: 1, 0.5 or 0."""

    text: str
    question: str
    right: tuple[str, ...]
    half: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    first: str = ""

    def judge(self, answer: str) -> float:
        if self.gold:
            return float(any(normalise(gold) in normalise(answer) for gold in self.gold))
        found = (any(re.search(p, answer.strip(), re.IGNORECASE) for p in keys) for keys in (self.right, self.half))
        return next((value for value, one in zip((1.0, 0.5), found, strict=True) if one), 0.0)


def everyday(name: str = "questions.jsonl") -> Iterator[Question]:
    """The questions of the folder."""
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, half = (FOLDER / row["file"]).read_text(encoding="utf-8"), tuple(row.get("half", ()))
        yield Question(text, row["question"], tuple(row["right"]), half, first=row.get("first", ""))


def squad(path: str, count: int) -> Iterator[Question]:
    """Questions of a SQuAD file about all its paragraphs as one text, as ``kvcli eval quotes`` draws them."""
    for case in sample(squad_cases(datasets.read([path])), count, 0):
        yield Question(case.text, case.question, (), gold=tuple({case.text[a:b] for a, b in case.gold}))


def needles(pipeline: kvcli.Pipeline, path: str, length: int, count: int) -> Iterator[Question]:
    """Facts in parts of a book, as ``kvcli eval quotes`` hides them."""
    counter = TokenCounter(pipeline.prompt)
    haystack = Haystack(counter, Path(path).read_text(encoding="utf-8"), path)
    for number in range(count):
        case = needle_case(CaseRequest("quotes", number, length, 0, counter, haystack))
        yield Question(case.text, case.question, (), gold=tuple({case.text[a:b] for a, b in case.gold}))


def spoken(pipeline: kvcli.Pipeline, question: Question) -> str:
    """The answer in a chat, after that to the first question if there is one."""
    chat = open_chat(pipeline, Document.of_text(question.text), max_tokens=96)
    for text in filter(None, (question.first, question.question)):
        for _ in chat.ask(text, max_tokens=96, allow_repetition=False):
            pass
    return chat.turns[-1].answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--squad", metavar="FILE")
    parser.add_argument("--needles", metavar="BOOK")
    parser.add_argument("--length", type=int, default=8192, help="tokens of a text with needles")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--follow-ups", action="store_true")
    parser.add_argument("--model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["way"], row.get("first", ""), row["question"]) for row in rows}
    model = kvcli.load_model(options.model, offline=True)
    ways = options.ways.split(",")
    pipelines = {way: kvcli.Pipeline(model, WAYS[way][2].get("recipe"), after=WAYS[way][1]) for way in ways}

    if options.needles:
        questions = list(needles(pipelines[ways[0]], options.needles, options.length, options.cases))
    else:
        own = "follow_ups.jsonl" if options.follow_ups else "questions.jsonl"
        questions = list(squad(options.squad, options.cases) if options.squad else everyday(own))
        random.Random(0).shuffle(questions)

    @lru_cache(maxsize=16)
    def read(text: str) -> Any:  # the words after a question change nothing before it
        return pipelines[ways[0]].prefill(text)

    with options.out.open("a", encoding="utf-8") as out:
        for question, way in product(questions, ways):
            settings, pipeline = WAYS[way][2], pipelines[way]
            if (way, question.first, question.question) in done:
                continue
            alone, chats = "from_quotes" in settings, way.startswith("chat")
            context = pipeline.unread(question.text, question.question) if alone else chats or read(question.text)
            began, answer = perf_counter(), None
            if chats:
                answer = spoken(pipeline, question)
            elif context is not None:
                answer = pipeline.answer(context, question.question, cite=False, max_tokens=96, **settings).text
            row = {"way": way, "first": question.first, "question": question.question, "answer": answer}
            row |= {"score": question.judge(answer or ""), "seconds": round(perf_counter() - began, 2)}
            rows.append(row)
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
    command = f"python -m benchmarks.everyday --out {options.out.name}"
    if options.squad:
        command += f" --squad {Path(options.squad).name} --cases {options.cases}"
    if options.needles:
        command += f" --needles {Path(options.needles).name} --length {options.length} --cases {options.cases}"
    if options.follow_ups:
        command += " --follow-ups"
    if options.ways != ",".join(WAYS):
        command += f" --ways {options.ways}"
    task = "needles" if options.needles else "SQuAD" if options.squad else "everyday"
    task = "follow-ups" if options.follow_ups else task
    for way in ways:
        answered = [row for row in rows if row["way"] == way and row["answer"] is not None]
        scores = [row["score"] for row in answered]
        length = sum(len(row["answer"]) for row in answered) / max(1, len(scores))
        found: dict[str, Any] = {
            "table": "everyday",
            "task": task,
            "way": WAYS[way][0],
        }
        found |= {"right": scores.count(1.0), "half": scores.count(0.5), "characters": round(length)}
        json.dump(found | provenance(command, n=len(scores)), sys.stdout, ensure_ascii=False)
        print()


if __name__ == "__main__":
    main()
