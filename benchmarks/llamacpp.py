"""Reading and decoding speed of kvcli and of llama.cpp on the same file, in turn in one process.

    pip install llama-cpp-python          # builds for some minutes; not a dependency of kvcli
    python -m benchmarks.llamacpp --gguf SmolLM2-135M-Instruct.Q4_1.gguf --text great_expectations.txt --lengths 1K,8K

Both read the same tokens with the same number of threads and then decode greedily, one token at a time: no drafts, so
that the figures do not depend on what is said. Decoding alternates between both, so that other work on the machine
slows both; times are medians, with the processor's time beside them. kvcli keeps what its recipe keeps, llama.cpp all.
Prints rows for ``docs/results/data/``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

import kvcli
from benchmarks.provenance import provenance
from kvcli.engine.decode_step import make_decode_step
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.prompt import Prompt
from kvcli.evaluate.build_cases import lengths
from kvcli.events import drain
from kvcli.models.model import Model
from kvcli.recipe import parse
from kvcli.types import CHUNK

Times = list[tuple[float, float]]
"""Seconds by the clock and of the processor."""


def timed(work: Callable[[], Any], times: Times) -> Any:
    wall, cpu = perf_counter(), process_time()
    result = work()
    times.append((perf_counter() - wall, process_time() - cpu))
    return result


class Kvcli:
    name = "kvcli"

    def __init__(self, model: Model, recipe: str) -> None:
        self.model, self.recipe = model, parse(recipe)

    def read(self, ids: list[int]) -> int:
        context = drain(prefill(self.model, ids[:-1], self.recipe, chunk=CHUNK, horizon=len(ids) + 512))
        self.cache = new_decode_cache(self.model, context)
        with torch.inference_mode():
            self.cache.reserve(512)
        self.next = make_decode_step(self.model, self.cache)
        return self.step(ids[-1])

    def step(self, token: int) -> int:
        logits = self.next(torch.tensor([token]))
        self.cache.extend(1)
        return int(logits.argmax())


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, gguf: Path, context: int, threads: int) -> None:
        from llama_cpp import Llama  # type: ignore[import-not-found]

        options = {"n_threads": threads, "n_threads_batch": threads, "n_batch": CHUNK, "n_ubatch": CHUNK}
        self.llama = Llama(str(gguf), n_ctx=context, logits_all=False, verbose=False, **options)

    def read(self, ids: list[int]) -> int:
        self.llama.reset()
        self.llama.eval(ids)
        return self._best()

    def step(self, token: int) -> int:
        self.llama.eval([token])
        return self._best()

    def _best(self) -> int:
        return int(self.llama.sample(temp=0.0))


def measure(both: list[Kvcli | LlamaCpp], ids: list[int], tokens: int) -> dict[str, tuple[Times, Times]]:
    """Times of reading, and of each decoded token, by name."""
    found: dict[str, tuple[Times, Times]] = {one.name: ([], []) for one in both}
    last = {one.name: timed(lambda one=one: one.read(ids), found[one.name][0]) for one in both}
    for number in range(tokens + 2):
        for one in both:
            times: Times = found[one.name][1] if number >= 2 else []  # the first two warm up
            last[one.name] = timed(lambda one=one: one.step(last[one.name]), times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--lengths", default="1K,8K")
    parser.add_argument("--recipe", default="locret(budget=1024)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode after each text")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = kvcli.load_model(str(options.gguf))
    sizes = lengths(options.lengths, "--lengths")
    ids = Prompt(model.tokenizer).document(options.text.read_text())
    both = [Kvcli(model, options.recipe), LlamaCpp(options.gguf, max(sizes) + 512, options.threads)]
    with torch.inference_mode():
        both[0].read(ids[: 2 * CHUNK])
        for size in sizes:
            found = measure(both, ids[:size], options.tokens)
            for name, (reading, decoding) in found.items():
                row = {
                    "table": "llamacpp",
                    "program": name,
                    "tokens": size,
                    "read_tps": round(size / reading[0][0], 1),
                    "read_cpu_s": round(reading[0][1], 2),
                    "token_ms": round(1000 * median(wall for wall, _ in decoding), 1),
                    "token_least_ms": round(1000 * min(wall for wall, _ in decoding), 1),
                    "token_cpu_ms": round(1000 * median(cpu for _, cpu in decoding), 1),
                    "threads": options.threads,
                }
                command = f"python -m benchmarks.llamacpp {' '.join(_names(sys.argv[1:]))}"
                print(json.dumps(row | provenance(command, n=options.tokens)), flush=True)


def _names(arguments: list[str]) -> list[str]:
    """Arguments without folders, as a reader would type them."""
    return [Path(a).name if "/" in a else a for a in arguments]


if __name__ == "__main__":
    main()
