"""Decoding after a short and after a long text, each reading held in several ways, all in turn in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.after --lengths 1K,32K,128K --keep "keydiff(budget=1024)"

``kvcli bench`` measures a recipe and a length after the other, and on a machine with other work the machine then
changes between them. Here one text is read, what is kept at each length is frozen, and all take a few steps in turn,
round after round: a round's steps have the same neighbours. Ratios are medians over rounds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.passkey import load
from kvcli.bench.check import draw
from kvcli.cache.context import freeze
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import new_prefill_cache, prefill_steps
from kvcli.evaluate import build_cases
from kvcli.recipe import parse

Key = tuple[int, str]
HOLDS = ["dense", "int8", "kivi(bits=4)", "kivi(bits=2)", "turbo(bits=4)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1K,32K,128K")
    parser.add_argument("--keep", default="keydiff(budget=1024)")
    parser.add_argument("--holds", nargs="+", default=HOLDS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load("smollm2-135m")
    lengths, recipe = build_cases.lengths(options.lengths), parse(options.keep)
    ids, question = draw(model, max(lengths), 3), draw(model, 32, 4)
    work, tails, began = new_prefill_cache(model, recipe, len(ids)), {}, perf_counter()
    for event in prefill_steps(model, ids, recipe, resume=work):
        if event.done % 16384 == 0:
            print(f"{event.done:8,} tokens read in {perf_counter() - began:6.0f} s", flush=True)
        if event.done not in lengths:
            continue
        for hold in options.holds:
            with torch.inference_mode():
                context = freeze(work, parse(f"full+{hold}").storage, release=False)
            tails[event.done, hold] = tail = new_decode_cache(model, context)
            model.forward(torch.tensor(question), tail, logits=True)
            tail.extend(len(question))
        if len(tails) > len(options.holds) or len(lengths) == 1:
            report(turns(model, tails, options.rounds, options.steps), options.holds[0])


def turns(model: Any, tails: dict[Key, DecodeCache], rounds: int, steps: int) -> dict[Key, list[float]]:
    """Seconds of a step of each tail, in each round; afterwards the tails are as they were."""
    times: dict[Key, list[float]] = {key: [] for key in tails}
    before, token = {key: tail.length for key, tail in tails.items()}, torch.tensor([5])
    with torch.inference_mode():
        for tail in tails.values():
            tail.reserve(tail.length + steps * (rounds + 1))
    for number in range(rounds + 1):
        for key, tail in tails.items():
            began = perf_counter()
            for _ in range(steps):
                model.forward(token, tail, logits=True)
                tail.extend(1)
            if number:  # the first round warms up
                times[key].append((perf_counter() - began) / steps)
    for key, tail in tails.items():
        tail.rewind(before[key])
    return times


def report(times: dict[Key, list[float]], plain: str) -> None:
    """A line for each reading and hold, and JSON."""
    first = min(tokens for tokens, _ in times)
    found = []
    for (tokens, hold), own in times.items():
        beside = {plain: (tokens, plain), "first": (first, hold)}
        ratio = {n: median(b / a for a, b in zip(own, times[other], strict=True)) for n, other in beside.items()}
        found.append({"tokens": tokens, "hold": hold, "ms": 1e3 * median(own), "least_ms": 1e3 * min(own), **ratio})
        print(
            f"{tokens:8,} {hold:14} {1e3 * median(own):6.0f} ms a token (least {1e3 * min(own):.0f})"
            f"  speed {ratio[plain]:.2f} of {plain}, {ratio['first']:.2f} of after {first:,} tokens"
        )
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
