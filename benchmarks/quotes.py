"""How often the first quotes by words hold the answer, on a SQuAD-like file joined into one text.

Only the second half of the questions counts, because the weights were fitted on the first. Each question is also asked
of a text without its article: AUROC says how well the probability of the best quote tells the two apart. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

from kvcli.documents.document import Document
from kvcli.documents.sentences import split_sentences
from kvcli.retrieval.quotes import UNLIKELY, QuoteSearch, sentence_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wrong", type=int, default=100, help="questions that are asked of the wrong text too")
    options = parser.parse_args()
    articles = json.loads(options.data.read_text("utf-8"))["data"]
    text, questions = _joined(articles)
    document = Document.of_text(text)
    began = perf_counter()
    index = sentence_index(document)
    build_s = perf_counter() - began
    questions = questions[len(questions) // 2 :]
    first = three = 0
    right, began = list[float](), perf_counter()
    for _, question, answers in questions:
        found = QuoteSearch(document, question).quotes()
        hits = [any(q.char_start <= a and b <= q.char_end for a, b in answers) for q in found.quotes]
        first, three = first + any(hits[:1]), three + any(hits)
        right.append(found.likely)
    lookup_s = (perf_counter() - began) / len(questions)
    wrong = []
    chosen = questions[:: max(1, len(questions) // options.wrong)]
    others = {a: Document.of_text(_joined([x for i, x in enumerate(articles) if i != a])[0]) for a, _, _ in chosen}
    for article, question, _ in sorted(chosen):
        wrong.append(QuoteSearch(others[article], question).quotes().likely)
    pairs = [(r > w) + (r == w) / 2 for r in right for w in wrong]
    row = {
        "questions": len(questions),
        "characters": len(text),
        "sentences": len(index),
        "first": round(first / len(questions), 4),
        "three": round(three / len(questions), 4),
        "auroc": round(sum(pairs) / len(pairs), 4),
        "wrong": len(wrong),
        "wrong_refused": round(sum(w < UNLIKELY for w in wrong) / len(wrong), 4),
        "right_refused": round(sum(r < UNLIKELY for r in right) / len(right), 4),
        "split_s": round(_split_s(text), 4),
        "build_s": round(build_s, 4),
        "lookup_ms": round(1000 * lookup_s, 3),
    }
    print(json.dumps(row))


def _joined(articles: list[Any]) -> tuple[str, list[tuple[int, str, list[tuple[int, int]]]]]:
    """Paragraphs as one text; each question with its article and where its answers are."""
    parts, questions, at = [], [], 0
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                spans = [(at + a["answer_start"], at + a["answer_start"] + len(a["text"])) for a in asked["answers"]]
                questions.append((number, asked["question"], spans))
            parts.append(paragraph["context"])
            at += len(paragraph["context"]) + 2
    return "\n\n".join(parts), questions


def _split_s(text: str) -> float:
    began = perf_counter()
    split_sentences(text)
    return perf_counter() - began


if __name__ == "__main__":
    main()
