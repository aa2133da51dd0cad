"""Holds that keep everything and attend to little, beside ``full`` and ``locret`` at equal device memory.

    python -m benchmarks.offload needle book.txt --length 2K --cases 24 --out offload.jsonl
    python -m benchmarks.offload multidoc --data squad.json --length 2K --cases 12 --out offload.jsonl

Cases and scores are those of ``kvcli eval``; here one reading serves all holds, and a row also has bytes, hits and
recall. ``locret`` keeps as many units as fit into what the largest of the holds takes on the device. ``recall`` is the
share of the units with the largest true logits, as many as were chosen, that a step chose. Rows that are in ``--out``
are not measured again; the last line of standard output is their summary.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.passkey import load
from kvcli.cache.context import Context, freeze
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import new_prefill_cache, prefill, prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.evaluate import build_cases, datasets, tasks
from kvcli.evaluate.case import Case, CaseSpec
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.metrics import score
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.events import Answer
from kvcli.planning.positions import kept_units
from kvcli.recipe import Recipe, parse
from kvcli.retaining_heads import calibration
from kvcli.retaining_heads.discovery import attach
from kvcli.storage.base import KVStorage
from kvcli.storage.offload.layer import BlockReader
from tests.laws.helpers import drain

RECIPES = [
    "dense",
    "quest(pages=38)",
    "infllm(block=64, blocks=8, sinks=32, local=256)",
    "shadowkv(rank=64, chunks=32, outliers=8)",
    "infinigen(partial=0.5)",
]
"""At 2,048 tokens of SmolLM2-135M, 32 to 42 % of a dense cache's bytes are on the device."""


def recall(reader: BlockReader, q: Tensor) -> float:
    """Of the units that come nearest to some query's largest logit, how many the last step chose; mean over heads.

    Args:
        reader: after a step, of a layer in blocks of any size.
        q: the step's queries ``[H, m, D]``, rotated.
    """
    assert reader.last_selection is not None
    held, (ids, lengths) = reader.layer, reader.last_selection
    keys = held.store.dense()[0].float()
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


@dataclass(frozen=True, kw_only=True)
class Watching(KVStorage):
    """Observes for several holds, so that one reading serves all of them."""

    holds: tuple[KVStorage, ...]

    @property
    def calibrated(self) -> Literal["may"]:
        return "may"

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        for hold in self.holds:
            hold.observe(state, layer, q, start)


def ask(model: Any, context: Context, ids: list[int], most: int) -> tuple[Answer, list[BlockReader]]:
    """An answer, and what its tail read with."""
    tail = new_decode_cache(model, context)
    answer = [e for e in generate(model, tail, ids, max_tokens=most) if isinstance(e, Answer)][-1]
    return answer, [r for r in tail.context_layers if isinstance(r, BlockReader)]


def recalls(model: Any, context: Context, ids: list[int]) -> dict[int, float]:
    """Recall by layer, mean over the question's last three tokens one by one."""
    tail, found = new_decode_cache(model, context), defaultdict[int, list[float]](list)
    for i, reader in enumerate(tail.context_layers):
        if isinstance(reader, BlockReader):

            def watched(q: Tensor, scale: float, start: int, i: int = i, reader: BlockReader = reader) -> Any:
                term = type(reader).attend(reader, q, scale, start)
                found[i].append(recall(reader, q))
                return term

            reader.attend = watched  # type: ignore[method-assign]
    for part in (ids[:-3], *([token] for token in ids[-3:])):
        model.forward(torch.tensor(part), tail, logits=False)
        tail.extend(len(part))
    return {i: sum(values[1:]) / 3 for i, values in found.items()}


def on_device(spec: Any, recipe: Recipe, tokens: int) -> int:
    """Planned bytes of a context on the device, as :attr:`kvcli.cache.context.Context.nbytes` counts them."""
    parts = [recipe.storage.size(spec, i, kept_units(spec, recipe, tokens, i)) for i in range(spec.layers)]
    return sum(part.device for part in parts) + max(part.shared for part in parts)


def equal(spec: Any, recipes: Iterable[Recipe], tokens: int) -> int:
    """Units that ``locret`` may keep in the bytes that the largest hold takes on the device."""
    dense = spec.layers * spec.kv_heads * spec.unit_bytes
    return max(on_device(spec, r, tokens) for r in recipes if r.storage.offloads) // dense


class Bench:
    """A model, what is compared, and a file of rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = load("smollm2-135m")
        attach(self.model)
        self.prompt, self.out = Prompt(self.model.tokenizer), options.out
        if options.calibrate:
            ids = self.prompt.document(options.calibrate.read_text()[:20_000])[:2048]
            self.model.calibration = drain(calibration.measure(self.model, ids))
        self.keep, self.fields = options.keep, options.locret
        self.recipes = [parse(f"{options.keep}+{text}") for text in options.recipes]
        lines = options.out.read_text().splitlines() if options.out.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def case(self, job: CaseSpec) -> None:
        """Everything that is not measured yet of one case."""
        done = {r["recipe"] for r in self.rows if (r["task"], r["length"], r["case"]) == self._name(job)}
        todo = [r for r in self.recipes if str(r) not in done]
        if not todo and ("locret" in done or not self.fields):
            return
        case = job.make()
        ids = self.prompt.document(case.text)
        if todo:
            watching = Recipe(parse(self.keep).policy, Watching(holds=tuple(r.storage for r in todo)))
            work = new_prefill_cache(self.model, watching, len(ids))
            drain(prefill_steps(self.model, ids, watching, resume=work, horizon=8192))
            for recipe in todo:
                with torch.inference_mode():
                    context = freeze(work, recipe.storage, release=False)
                self._ask(job, case, str(recipe), context, len(ids))
        if self.fields and "locret" not in done:
            budget = equal(self.model.spec, self.recipes, len(ids))
            recipe = parse(f"locret(budget={budget}, {self.fields})")
            context = drain(prefill(self.model, ids, recipe, horizon=8192))
            self._ask(job, case, "locret", context, len(ids), budget=budget)

    def _ask(self, job: CaseSpec, case: Case, name: str, context: Context, tokens: int, **more: int) -> None:
        for question in case.questions:
            asked = self.prompt.question(question.text)
            answer, readers = ask(self.model, context, asked, case.max_tokens)
            row = {
                **dict(zip(("task", "length", "case"), self._name(job), strict=True)),
                "recipe": name,
                **more,
                "tokens": tokens,
                "score": score(answer.text, question),
                "gold": question.gold,
                "answer": answer.text,
                "device_per_token": context.nbytes / tokens,
                "host_per_token": context.host_nbytes / tokens,
                "hits": sum(r.hits for r in readers),
                "misses": sum(r.misses for r in readers),
                "recall": {str(i): r for i, r in recalls(self.model, context, asked).items()} if readers else {},
            }
            self.rows.append(row)
            with self.out.open("a") as out:
                out.write(json.dumps(row) + "\n")

    @staticmethod
    def _name(job: CaseSpec) -> tuple[str, int | None, int]:
        return job.task, job.length, job.number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="one of kvcli eval's")
    parser.add_argument("file", type=Path, nargs="?", help="a document to hide facts in")
    parser.add_argument("--data", nargs="*", help="benchmark files, passages")
    parser.add_argument("--length", default="2K")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--keep", default="full", help="what the holds hold")
    parser.add_argument("--locret", default="stabilizers=64, sinks=48", help="its fields; empty for none")
    parser.add_argument("--calibrate", type=Path, help="a text whose first 2048 tokens skew=file goes by")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bench = Bench(options)
    counter = TokenCounter(bench.prompt)
    jobs = build_cases.case_specs(
        [tasks.lookup(options.task)],
        counter=counter,
        haystack=Haystack(counter, options.file.read_text() if options.file else None),
        data=datasets.read(options.data) if options.data else None,
        lengths=build_cases.lengths(options.length),
        cases=options.cases,
        seed=0,
    )
    for _, job in jobs:
        bench.case(job)
    print(json.dumps(summary(bench.rows)))


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task, length and recipe: scores, bytes per token, hits, recall by layer."""
    found = []
    for task, length, recipe in dict.fromkeys((r["task"], r["length"], r["recipe"]) for r in rows):
        mine = [r for r in rows if (r["task"], r["length"], r["recipe"]) == (task, length, recipe)]
        fetched = sum(r["hits"] + r["misses"] for r in mine)
        layers = {i: [r["recall"][i] for r in mine] for i in mine[0]["recall"]}
        means = {i: round(sum(v) / len(v), 2) for i, v in layers.items()}
        found.append(
            {
                "task": task,
                "length": length,
                "recipe": recipe,
                "budget": [min(r["budget"] for r in mine), max(r["budget"] for r in mine)]
                if "budget" in mine[0]
                else None,
                "score": f"{sum(r['score'] for r in mine):g} of {len(mine)}",
                "tokens": round(sum(r["tokens"] for r in mine) / len(mine)),
                "device": round(sum(r["device_per_token"] for r in mine) / len(mine)),
                "host": round(sum(r["host_per_token"] for r in mine) / len(mine)),
                "hit_rate": round(sum(r["hits"] for r in mine) / fetched, 2) if fetched else None,
                "recall": round(sum(means.values()) / len(means), 2) if means else None,
                "recall_by_layer": means,
            }
        )
    return found


if __name__ == "__main__":
    main()
