"""Likely sources: how often the page that an answer is from is first, or among the first three, by layer set.

Passages with a question and an answer each (``title``, ``text``, ``question``, ``answers``) stand as the pages of one
document; the page of the case's own passage is gold. Attention is that of the answer's tokens, once of the answer that
is known to be right and once of what the model answers itself. Pages are ranked by attention over what an answer
without content gives them, over their share of the kept units, and as it is. The baseline is BM25 of the pages for the
words of question and answer, and for those of the answer alone, as if the question shared none; what kvcli does is the
first of each, multiplied. Cases are appended to a file; a second run adds what is missing:

    python -m benchmarks.sources --data nq_passages_train.jsonl.gz --cases 24 --tokens 1000 --out sources.jsonl

The last line of standard output is JSON: per recipe, answer and method the cases in the top 1 and the top 3. With
``--half even`` or ``odd`` it is of every second case, so that what was chosen on one half is reported on the other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.passkey import _end, load

RECIPES = ["full", "snapkv(budget=256, stabilizers=64, sinks=48)"]
LAYERS = {
    "all layers": (0.0, 1.0),
    "first third": (0.0, 1 / 3),
    "middle third": (1 / 3, 2 / 3),
    "last third": (2 / 3, 1.0),
    "second half": (0.5, 1.0),
    "middle half": (0.25, 0.75),
}
ANSWERS = ("gold", "own")


def cases(data: Path, count: int, tokens: int, model: Any) -> Iterator[tuple[int, list[dict[str, Any]], int]]:
    """Case number, its passages as pages and the gold page's index; documents have at most ``tokens`` tokens."""
    opened = gzip.open if data.suffix == ".gz" else open
    with opened(data, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(20 * count + 400), lines, strict=False)]
    rows = [r for r in rows if any(a in r["text"] for a in r["answers"])]
    for case in range(count):
        rng = random.Random(case)
        gold, rest = rows[case], rng.sample(rows[count:], 40)
        pages = [gold]
        for row in rest:
            others = row["title"] != gold["title"] and not any(a in row["text"] for a in gold["answers"])
            if others and len(model.tokenizer(paged([*pages, row]).text)["input_ids"]) <= tokens - 60:
                pages.append(row)
        rng.shuffle(pages)
        yield case, pages, pages.index(gold)


def paged(passages: Sequence[dict[str, Any]]) -> Any:
    """Passages as the pages of a document, as those of a PDF are."""
    from kvcli.documents import Document, Span

    text, spans = "", []
    for n, row in enumerate(passages, 1):
        mark, body = f"[page {n}]\n", f"{row['title']}\n{row['text']}\n\n"
        spans.append(Span(len(text), len(text) + len(mark + body), len(text) + len(mark), "pages", n))
        text += mark + body
    return Document(text, ("pages",), "", len(text), spans=tuple(spans), pages=len(spans))


def measure(model: Any, recipe: str, passages: list[dict[str, Any]], gold: int) -> dict[str, Any]:
    """Per answer and layer, attention and kept units of each page; and the baseline's scores."""
    from kvcli.documents.blocks import blocks
    from kvcli.engine.generate import generate, new_decode_cache
    from kvcli.engine.prefill import prefill
    from kvcli.engine.prompt import Prompt
    from kvcli.events import Answer
    from kvcli.recipe import parse
    from kvcli.retrieval.attribution import NEUTRAL, answer_attention, per_block
    from kvcli.retrieval.bm25 import bm25_scores

    document, prompt = paged(passages), Prompt(model.tokenizer)
    pieces, offsets, ids = blocks(document), prompt.offsets(document.text), prompt.document(document.text)
    texts = [document.text[p.start : p.end] for p in pieces]
    row = passages[gold]
    question = prompt.question(row["question"])
    context = _end(prefill(model, ids, parse(recipe), probe=question))
    made = list(generate(model, new_decode_cache(model, context), question, max_tokens=24))
    own = [e for e in made if isinstance(e, Answer)][-1].text
    right = next(a for a in row["answers"] if a in row["text"])
    found: dict[str, Any] = {"read": len(ids), "kept": context.kept, "pages": len(pieces), "own_answer": own}
    for name, asked, text in (
        ("gold", question, right),
        ("own", question, own or "."),
        ("neutral", prompt.question(NEUTRAL), NEUTRAL),
    ):
        mass, units = answer_attention(model, context, [*asked, *prompt.answer(text)], len(asked))
        by_layer = [per_block(pieces, offsets, m, u) for m, u in zip(mass, units, strict=True)]
        found[name] = [[round(x, 5) for x in attention] for attention, _ in by_layer]
        found["units"] = [kept for _, kept in by_layer]
        if name != "neutral":
            found[f"lexical {name}"] = bm25_scores(texts, f"{row['question']} {text}")
            found[f"lexical {name} alone"] = bm25_scores(texts, text)
    return found


def methods(row: dict[str, Any], answer: str) -> dict[str, list[float]]:
    """Scores of the pages of one case by every method."""
    from kvcli.retrieval.attribution import lift, over_average

    def total(by_layer: list[list[float]], layers: tuple[float, float]) -> list[float]:
        n = len(by_layer)
        return [sum(x) for x in zip(*by_layer[round(layers[0] * n) : round(layers[1] * n)], strict=True)]

    words = {"words of question and answer": row[f"lexical {answer}"]}
    words["words of the answer"] = row[f"lexical {answer} alone"]
    found = {**words}
    for name, layers in LAYERS.items():
        mass, none, units = (total(row[k], layers) for k in (answer, "neutral", "units"))
        found[name] = lift(mass, none)
        for kind, scores in words.items():
            found[f"{name} × {kind}"] = [a * b for a, b in zip(found[name], over_average(scores), strict=True)]
        found[f"{name}, by share of units"] = lift(mass, units)
        found[f"{name}, as it is"] = mass
    return found


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """recipe → answer → method → cases in the top 1 and in the top 3; ties count against the method."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        for answer in ANSWERS:
            by = cells.setdefault(row["recipe"], {}).setdefault(answer, {})
            for name, scores in methods(row, answer).items():
                own = scores[row["gold_page"]]
                rank = sum(s >= own for s in scores)
                cell = by.setdefault(name, {"n": 0, "top1": 0, "top3": 0})
                cell["n"] += 1
                cell["top1"] += rank <= 1
                cell["top3"] += rank <= 3
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--half", choices=["even", "odd"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["recipe"], row["tokens"], row["case"]) for row in rows}
    model = load(options.model)
    with options.out.open("a") as out:
        for case, passages, gold in cases(options.data, options.cases, options.tokens, model):
            for recipe in options.recipes:
                if (recipe, options.tokens, case) in done:
                    continue
                head = {"recipe": recipe, "tokens": options.tokens, "case": case, "gold_page": gold}
                rows.append({**head, **measure(model, recipe, passages, gold)})
                out.write(json.dumps(rows[-1]) + "\n")
                out.flush()
    halves = {None: (0, 1), "even": (0,), "odd": (1,)}[options.half]
    print(json.dumps(table([row for row in rows if row["case"] % 2 in halves])))


if __name__ == "__main__":
    main()
