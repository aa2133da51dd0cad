"""A decoding step with kvcli's product of one row and with torch's, in turn in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu_linear --text great.txt --tokens 2K --keep "keydiff(budget=1024)"

Ratios are medians over rounds of one step each; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks.passkey import _end, load
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.prompt import Prompt
from kvcli.evaluate import build_cases
from kvcli.models import cpu_linear
from kvcli.recipe import parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", default="2K")
    parser.add_argument("--keep", default="keydiff(budget=1024)")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    model = load("smollm2-135m")
    prompt = Prompt(model.tokenizer)
    ids = prompt.document(options.text.read_text())[: build_cases.lengths(options.tokens)[0]]
    tail = new_decode_cache(model, _end(prefill(model, ids, parse(options.keep))))
    ours = [m for m in model.module.modules() if type(m) is cpu_linear.CpuDecodeLinear]
    assert ours
    spent: dict[type, list[float]] = {cpu_linear.CpuDecodeLinear: [], torch.nn.Linear: []}
    logits = {}
    with torch.inference_mode():
        asked = prompt.question("Who tells the story?")
        model.forward(torch.tensor(asked), tail, logits=True)
        tail.extend(len(asked))
        for _ in range(options.rounds + 1):  # the first round warms up
            for kind, times in spent.items():
                for layer in ours:
                    layer.__class__ = kind
                began = perf_counter()
                logits[kind] = model.forward(torch.tensor([asked[-1]]), tail, logits=True)
                times.append(perf_counter() - began)
    a, b = (times[1:] for times in spent.values())
    x, y = (row.float() for row in logits.values())
    found = {
        "tokens": len(ids),
        "threads": torch.get_num_threads(),
        "ours_ms": {"median": 1e3 * median(a), "least": 1e3 * min(a)},
        "torch_ms": {"median": 1e3 * median(b), "least": 1e3 * min(b)},
        "times_as_fast": median(q / p for p, q in zip(a, b, strict=True)),
        "distance_of_logits": float((x - y).norm() / y.norm()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
