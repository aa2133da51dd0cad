"""What retaining heads cost: reading time with them over reading time without, in one process, taking turns.

    python -m benchmarks.heads --text great_expectations.txt --tokens 4K --rounds 7

The comparison is ``streaming``, whose scores cost nothing. The last line of standard output is JSON with medians.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.passkey import load
from benchmarks.prefill import read

FIELDS = "budget=1024, stabilizers=64, sinks=48"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", default="4K")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    from kvcli.engine.prompt import Prompt
    from kvcli.retaining_heads.discovery import attach

    model = load(options.model)
    attach(model)
    count = int(options.tokens.removesuffix("K")) * (1024 if options.tokens.endswith("K") else 1)
    ids = Prompt(model.tokenizer).document(options.text.read_text())[:count]
    seconds: dict[str, list[float]] = {"streaming": [], "locret": []}
    for _ in range(options.rounds + 1):  # the first round warms up
        for name, spent in seconds.items():
            began = perf_counter()
            read(model, ids, f"{name}({FIELDS})", 512)
            spent.append(perf_counter() - began)
    plain, heads = (spent[1:] for spent in seconds.values())
    ratios = [b / a for a, b in zip(plain, heads, strict=True)]
    print(
        json.dumps(
            {
                "tokens": len(ids),
                "streaming_s": round(median(plain), 3),
                "locret_s": round(median(heads), 3),
                "ratio": round(median(ratios), 3),
                "ratios": [round(r, 3) for r in sorted(ratios)],
            }
        )
    )


if __name__ == "__main__":
    main()
