"""Pass-key recall: recipe × length, on the default model, with the prompt and the engine that people run.

A five-digit key stands somewhere in a text of one repeated paragraph; every case has its own key and depth. Cells are
appended to a JSON-lines file as they finish, and a second run continues where the first one stopped:

    python -m benchmarks.passkey --lengths 1K,3K,7K,16K --cases 10 --out passkey.jsonl

With ``--looks 0,3`` each reading also answers with three passages read again, as ``ask`` does by default.

The last line of standard output is JSON: recall per recipe (and its second look) and length.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

RECIPES = [
    "full",
    "streaming(budget=1024)",
    "knorm(budget=1024)",
    "keydiff(budget=1024)",
    "snapkv(budget=1024)",
    "locret(budget=1024, stabilizers=64, sinks=48)",
]
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
QUESTION = "What is the pass key?"


def text(key: int, depth: float, sentences: int) -> str:
    """A text of ``sentences`` noise lines with the key after ``depth`` of them."""
    at = round(depth * sentences)
    fact = f"The pass key is {key}. Remember it. {key} is the pass key.\n"
    return NOISE * at + fact + NOISE * (sentences - at)


def build(model: Any, tokens: int, case: int, cases: int) -> tuple[str, list[int], str]:
    """Text, document ids and the key of one case; the document has at most ``tokens`` tokens."""
    from kvcli.engine.prompt import Prompt

    key = random.Random(f"{tokens} {case}").randrange(10000, 100000)
    prompt = Prompt(model.tokenizer)
    line = len(prompt.document(NOISE * 11)) - len(prompt.document(NOISE * 10))
    sentences = (tokens - len(prompt.document(text(key, 0, 0)))) // line
    depth = case / max(1, cases - 1)
    said = text(key, depth, sentences)
    return said, prompt.document(said), str(key)


_model: Any = None


def load(name: str) -> Any:
    from kvcli.models.load import load as load_model
    from kvcli.models.resolve import resolve

    events = resolve(name)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return load_model(end.value)


def start(name: str, threads: int) -> None:
    """A worker: one model with its heads, its share of the cores."""
    import torch

    from kvcli.retaining_heads.discovery import attach

    global _model
    torch.set_num_threads(threads)
    _model = load(name)
    attach(_model)


def run(recipe: str, tokens: int, cases: list[int], of: int, chunk: int, looks: list[int]) -> list[dict[str, Any]]:
    """The cases of one cell: read, ask, look for the key in the answer.

    Texts of one cell are the same up to the key, so a case continues a copy of the fill that has read the noise
    before it; a law in tests/laws says that this changes no bit.
    """
    from kvcli.cache.context import freeze
    from kvcli.documents.document import Document
    from kvcli.engine.generate import generate, new_decode_cache
    from kvcli.engine.prefill import new_prefill_cache, prefill_steps
    from kvcli.engine.prompt import Prompt
    from kvcli.events import Answer
    from kvcli.recipe import parse
    from kvcli.retrieval.passages import retrieve_passages
    from kvcli.retrieval.quotes import QuoteSearch

    parsed, rows, prompt = parse(recipe), [], Prompt(_model.tokenizer)
    built = {case: build(_model, tokens, case, of) for case in cases}
    noise, question = built[max(cases)][1], prompt.question(QUESTION)
    shared = new_prefill_cache(
        _model, parsed, len(noise), chunk=chunk, probe=len(question) if parsed.policy.query_aware else 0
    )
    for case in sorted(cases):
        said, ids, key = built[case]
        began = time.perf_counter()
        same = next((i for i, (a, b) in enumerate(zip(ids, noise, strict=False)) if a != b), 0) // chunk * chunk
        if same > shared.seen:
            for event in prefill_steps(_model, noise, parsed, chunk=chunk, probe=question, resume=shared):
                if event.done == same:
                    break
        work = _end(prefill_steps(_model, ids, parsed, chunk=chunk, probe=question, resume=shared.copy()))
        context = freeze(work, parsed.storage)
        tail = new_decode_cache(_model, context)
        for count in looks:
            asked, visible = question, context
            if count:
                search = QuoteSearch(Document.of_text(said), QUESTION)
                found = retrieve_passages(_model, prompt, context, search, count=count)
                asked, visible = prompt.question(QUESTION, passages=found.texts(said)), found.context
            tail.rewind()
            tail.set_context(visible)
            answer = [e for e in generate(_model, tail, asked, max_tokens=24) if isinstance(e, Answer)][-1]
            rows.append(
                {
                    "recipe": recipe,
                    "tokens": tokens,
                    "case": case,
                    "look": count,
                    "read": len(ids),
                    "kept": context.kept,
                    "right": key in answer.text,
                    "key": key,
                    "answer": answer.text,
                    "seconds": round(time.perf_counter() - began, 2),
                    "shared": shared.seen,
                }
            )
    return rows


def _end(reading: Any) -> Any:
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value


def table(rows: list[dict[str, Any]]) -> dict[str, dict[int, str]]:
    """recipe → length → "right/cases"."""
    cells: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        look = row.get("look", 0)
        cells[row["recipe"] + f", {look} passages again" * bool(look)][row["tokens"]].append(row["right"])
    return {r: {n: f"{sum(v)}/{len(v)}" for n, v in sorted(by.items())} for r, by in cells.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", default="1K,3K,7K,16K,32K,128K")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--looks", default="0")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    units = {"K": 1024, "M": 1024**2}
    lengths = [int(n.rstrip("KM")) * units.get(n[-1], 1) for n in options.lengths.split(",")]
    looks = [int(n) for n in options.looks.split(",")]

    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["recipe"], row["tokens"], row["case"], row.get("look", 0)) for row in rows}
    todo = {
        (recipe, tokens): [
            c for c in range(options.cases) if any((recipe, tokens, c, look) not in done for look in looks)
        ]
        for tokens in lengths
        for recipe in options.recipes
    }
    with (
        ProcessPoolExecutor(options.workers, initializer=start, initargs=(options.model, options.threads)) as pool,
        options.out.open("a") as out,
    ):
        jobs = [
            pool.submit(run, *cell, cases, options.cases, options.chunk, looks) for cell, cases in todo.items() if cases
        ]
        for job in as_completed(jobs):
            rows += job.result()
            out.write("".join(json.dumps(row) + "\n" for row in job.result()))
            out.flush()
    print(json.dumps(table(rows)))


if __name__ == "__main__":
    main()
