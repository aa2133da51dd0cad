"""Holds that keep everything and attend to little: answers, bytes, hits, recall and time against full attention.

    python -m tests.bench.offload --text book.txt --cases 2 --out offload.jsonl

Facts are hidden in a part of a book, or are pairs of keys and values, and asked for one by one. One reading serves all
holds; a row is one question under one hold. ``recall`` is the share of the units with the largest true logits, as many
as were chosen, that a step chose.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kvcli import engine
from kvcli.cache.context import Context, freeze
from kvcli.events import Answer
from kvcli.heads import calibrate
from kvcli.hold.base import Hold
from kvcli.hold.offload.layer import Reader
from kvcli.prompt import Prompt
from kvcli.recipe import Recipe, parse
from tests.bench.passkey import load
from tests.laws.helpers import drain


def recall(reader: Reader, q: Tensor) -> float:
    """Of the units that come nearest to some query's largest logit, how many the last step chose; mean over heads.

    Args:
        reader: after a step, of a layer in blocks of any size.
        q: the step's queries ``[H, m, D]``, rotated.
    """
    assert reader.chosen is not None
    held, (ids, lengths) = reader.held, reader.chosen
    keys = held.store.whole()[0].float()
    kv_heads, _, dim = keys.shape
    first = getattr(held.store, "first", 0)
    keys = keys[:, first : first + held.store.count * held.store.block]
    logits = q.float().reshape(kv_heads, -1, dim) @ keys.transpose(1, 2)
    margin = (logits - logits.amax(-1, keepdim=True)).amax(1)
    shares = []
    for head in range(kv_heads):
        count = ids.shape[1] if lengths is None else int(lengths[head])
        chosen = (ids[head, :count, None] * held.store.block + torch.arange(held.store.block)).flatten()
        best = margin[head].topk(len(chosen)).indices
        shares.append(float(torch.isin(best, chosen).float().mean()))
    return sum(shares) / kv_heads


RECIPES = [
    "dense",
    "quest(pages=16)",
    "infllm(block=32, blocks=6, sinks=16, local=64)",
    "shadowkv(rank=96, chunks=24, outliers=8)",
    "infinigen",
]
WORDS = ["anchor", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle"]


def needles(text: str, facts: int, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A text with facts between its sentences, and questions with their answers."""
    pieces = text.split(". ")
    asked = []
    for thing in rng.sample(WORDS, facts):
        number = str(rng.randrange(1000, 10000))
        pieces.insert(rng.randrange(1, len(pieces)), f"The number of the {thing} is {number}")
        asked.append((f"What is the number of the {thing}?", number))
    return ". ".join(pieces), asked


def pairs(count: int, facts: int, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Keys and values of six digits, and questions for some of them."""
    made = {str(rng.randrange(10**5, 10**6)): str(rng.randrange(10**5, 10**6)) for _ in range(count)}
    lines = ",\n".join(f'"{key}": "{value}"' for key, value in made.items())
    asked = [(f'What is the value of the key "{key}"?', made[key]) for key in rng.sample(list(made), facts)]
    return f"JSON data:\n{{{lines}}}", asked


@dataclass(frozen=True, kw_only=True)
class Watching(Hold):
    """Observes for several holds, so that one reading serves all of them."""

    holds: tuple[Hold, ...]

    @property
    def calibrated(self) -> Literal["may"]:
        return "may"

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        for hold in self.holds:
            hold.observe(state, layer, q, start)


def ask(model: Any, context: Context, ids: list[int]) -> tuple[Answer, list[Reader], dict[int, list[float]]]:
    """An answer of 40 tokens at most, its readers, and then recall per layer of the question's tokens one by one."""
    tail = engine.begin(model, context)
    answer = [e for e in engine.ask(model, tail, ids, max_tokens=40) if isinstance(e, Answer)][-1]
    readers = [r for r in tail.held if isinstance(r, Reader)]
    tail, found = engine.begin(model, context), defaultdict[int, list[float]](list)
    for i, reader in enumerate(tail.held):
        if isinstance(reader, Reader):

            def watched(q: Tensor, scale: float, start: int, i: int = i, reader: Reader = reader) -> Any:
                term = Reader.attend(reader, q, scale, start)
                found[i].append(recall(reader, q))
                return term

            reader.attend = watched  # type: ignore[method-assign]
    for part in (ids[:-3], *([token] for token in ids[-3:])):
        model.forward(torch.tensor(part), tail, logits=False)
        tail.extend(len(part))
    return answer, readers, {i: values[1:] for i, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--characters", type=int, default=6000, help="of the book, per text")
    parser.add_argument("--pairs", type=int, default=75)
    parser.add_argument("--kinds", nargs="*", choices=["needle", "kv"], default=["needle", "kv"])
    parser.add_argument("--cases", type=int, default=2, help="texts of each kind")
    parser.add_argument("--facts", type=int, default=4, help="questions per text")
    parser.add_argument("--calibrate", type=Path, help="a text whose first 2048 tokens skew=file goes by")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = load("smollm2-135m")
    prompt = Prompt(model.tokenizer)
    if options.calibrate:
        model.calibration = drain(
            calibrate.measure(model, prompt.document(options.calibrate.read_text()[:20_000])[:2048])
        )
    book, holds = options.text.read_text(), [parse(f"full+{text}") for text in options.recipes]
    watching = Recipe(parse("full").keep, Watching(holds=tuple(recipe.hold for recipe in holds)))
    with options.out.open("a") as out:
        for case in range(options.cases):
            rng = random.Random(case)
            start = rng.randrange(0, max(1, len(book) - options.characters))
            window = book[start : start + options.characters]
            kinds = {
                "needle": needles(window, options.facts, rng),
                "kv": pairs(options.pairs, options.facts, rng),
            }
            for kind in options.kinds:
                text, asked = kinds[kind]
                ids = prompt.document(text)
                work = engine.start(model, watching, len(ids))
                for _ in engine.fill(model, ids, watching, resume=work, horizon=8192):
                    pass
                for recipe, name in zip(holds, options.recipes, strict=True):
                    with torch.inference_mode():
                        context = freeze(work, recipe.hold, release=False)
                    for question, wanted in asked:
                        answer, readers, recalled = ask(model, context, prompt.question(question))
                        hits, misses = (sum(getattr(r, key) for r in readers) for key in ("hits", "misses"))
                        row = {
                            "kind": kind,
                            "case": case,
                            "hold": name,
                            "tokens": len(ids),
                            "right": wanted in answer.text,
                            "answer": answer.text,
                            "device_per_token": context.nbytes / len(ids),
                            "host_per_token": context.host_nbytes / len(ids),
                            "hits": hits,
                            "misses": misses,
                            "decode_tps": answer.decode_tps,
                            "recall": {i: sum(v) / len(v) for i, v in recalled.items()},
                        }
                        out.write(json.dumps(row) + "\n")
                        out.flush()
    print(json.dumps(summary([json.loads(line) for line in options.out.read_text().splitlines()])))


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per hold: right answers by kind, bytes per token, hits, recall by layer, tokens per second."""
    found: dict[str, dict[str, Any]] = {}
    for hold in dict.fromkeys(row["hold"] for row in rows):
        mine = [row for row in rows if row["hold"] == hold]
        fetched = sum(row["hits"] + row["misses"] for row in mine)
        layers = {i: [row["recall"][i] for row in mine] for i in mine[0]["recall"]}
        means = {i: round(sum(v) / len(v), 2) for i, v in layers.items()}
        found[hold] = {
            **{
                kind: f"{sum(r['right'] for r in mine if r['kind'] == kind)}/{sum(r['kind'] == kind for r in mine)}"
                for kind in ("needle", "kv")
            },
            "device": round(sum(r["device_per_token"] for r in mine) / len(mine)),
            "host": round(sum(r["host_per_token"] for r in mine) / len(mine)),
            "hit_rate": round(sum(r["hits"] for r in mine) / fetched, 2) if fetched else None,
            "recall": round(sum(means.values()) / len(means), 2) if means else None,
            "recall_by_layer": means,
            "decode_tps": round(sum(r["decode_tps"] for r in mine) / len(mine), 1),
        }
    return found


if __name__ == "__main__":
    main()
