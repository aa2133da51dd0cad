"""Reading speed: kvcli on a bounded cache against transformers' own full attention, on a real book.

Both read the same tokens with the same weights, dtype and threads in one process, one after the other at each length;
the machine's bfloat16 matrix products are timed in the same run, in the shapes of the model's projections.

    python -m benchmarks.prefill --text great_expectations.txt --lengths 8K,16K,32K,64K,128K --full 8K,16K,32K

``--parts`` says where kvcli's time goes. The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.passkey import load


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read(model: Any, ids: list[int], recipe: str, chunk: int) -> Any:
    from kvcli.engine.prefill import prefill
    from kvcli.recipe import parse

    reading = prefill(model, ids, parse(recipe), chunk=chunk)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def full(model: Any, ids: list[int]) -> None:
    """transformers' own prefill: its cache, its SDPA attention, logits of the last token only."""
    with model.reference() as module:
        module(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)


@contextmanager
def stopwatch(parts: dict[str, float]) -> Any:
    """Adds up the time of the cache's parts; each is a plain function, wrapped while this lasts."""
    from kvcli.cache import prefill_cache
    from kvcli.eviction.keydiff import Keydiff
    from kvcli.models.rope import ModelRotary

    places = [
        (prefill_cache, "causal_attention", "attention"),
        (ModelRotary, "rotate", "rotation"),
        (Keydiff, "rescore", "scoring"),
        (prefill_cache, "select", "selection"),
        (prefill_cache.PrefillCacheLayer, "_evict", "evict"),
        (prefill_cache.PrefillCacheLayer, "attend", "cache"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in places]

    def timed(work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                parts[part] = parts.get(part, 0.0) + time.perf_counter() - began

        return run

    for (owner, name, part), original in zip(places, originals, strict=True):
        setattr(owner, name, timed(original, part))
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def split(parts: dict[str, float], total: float) -> dict[str, float]:
    """Shares of the reading, in per cent."""
    own = {
        "attention": parts["attention"],
        "rotation": parts["rotation"],
        "scoring": parts["scoring"],
        "selection": parts["selection"],
        "gather": parts["evict"] - parts["scoring"] - parts["selection"],
        "copies and overhead of the cache": parts["cache"] - parts["attention"] - parts["rotation"] - parts["evict"],
        "projections, norms and the rest of the model": total - parts["cache"],
    }
    return {name: round(100 * value / total, 1) for name, value in own.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--lengths", default="8K,16K,32K,64K,128K")
    parser.add_argument("--full", default="8K,16K,32K")
    parser.add_argument("--recipe", default="keydiff(budget=1024)")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes, whole = ([int(n[:-1]) * 1024 for n in text.split(",") if n] for text in (options.lengths, options.full))

    from kvcli.bench.roofline import matmul, prefill_flop
    from kvcli.engine.prompt import Prompt
    from kvcli.recipe import parse

    model = load(options.model)
    ids = Prompt(model.tokenizer).document(options.text.read_text())
    recipe = parse(options.recipe)
    read(model, ids[:2048], options.recipe, options.chunk)
    full(model, ids[:1024])
    top = matmul(model.spec, options.chunk)
    rows = []
    for size in sizes:
        if size > len(ids):
            print(f"the text has {len(ids):,} tokens; {size:,} left out")
            continue
        ours, theirs = [], []
        for _ in range(options.repeats):
            ours.append(seconds(lambda n=size: read(model, ids[:n], options.recipe, options.chunk)))
            if size in whole:
                theirs.append(seconds(lambda n=size: full(model, ids[:n])))
        best = statistics.median(ours)
        flop = prefill_flop(model.spec, recipe, tokens=size, chunk=options.chunk)
        row = {
            "tokens": size,
            "seconds": round(best, 2),
            "tokens_per_second": round(size / best),
            "share_of_matmul_ceiling": round(flop / best / top, 3),
            "full_seconds": round(statistics.median(theirs), 2) if theirs else None,
            "times_faster": round(statistics.median(theirs) / best, 2) if theirs else None,
        }
        rows.append(row)
        print(row, flush=True)
    result = {
        "recipe": options.recipe,
        "chunk": options.chunk,
        "threads": options.threads,
        "dtype": model.spec.dtype,
        "matmul_gflops_before": round(top / 1e9),
        "matmul_gflops_after": round(matmul(model.spec, options.chunk) / 1e9),
        "rows": rows,
    }
    if options.parts:
        parts: dict[str, float] = {}
        with stopwatch(parts):
            total = seconds(lambda: read(model, ids[: sizes[0]], options.recipe, options.chunk))
        result["parts"] = split(parts, total)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
