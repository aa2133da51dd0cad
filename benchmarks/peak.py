"""Peak memory of a reading, above the loaded model: one fresh process per length, so that peaks do not mix.

    python -m benchmarks.peak --text great_expectations.txt --lengths 16K,128K

Linux only: the kernel's own high-water mark of resident memory, reset after loading and warming up. The last line of
standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.passkey import load
from benchmarks.prefill import read


def one(name: str, text: Path, tokens: int, recipe: str, chunk: int) -> dict[str, float]:
    from kvcli.bench.peak import Peak
    from kvcli.engine.prompt import Prompt
    from kvcli.planning import memory
    from kvcli.recipe import parse

    model = load(name)
    ids = Prompt(model.tokenizer).document(text.read_text())[:tokens]
    read(model, ids[: chunk // 2], recipe, chunk)
    for weights in model.module.parameters():
        weights.sum()  # their file is mapped: rows of the embedding would else arrive with the words that need them
    peak = Peak("cpu")
    context = read(model, ids, recipe, chunk)
    plan, _ = memory.plan_run(model.spec, parse(recipe), tokens=len(ids), chunk=chunk, question=0, answer=1)
    return {
        "tokens": len(ids),
        "peak_mib": round((peak.bytes() or 0) / 2**20, 1),
        "planned_mib": round((plan.total - plan.weights - plan.text) / 2**20, 1),
        "kept_mib": round(context.nbytes / 2**20, 1),
        "weights_mib": round(plan.weights / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--lengths", default="16K,128K")
    parser.add_argument("--recipe", default="keydiff(budget=1024)")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.model, options.text, options.one, options.recipe, options.chunk)))
        return
    rows = []
    for length in options.lengths.split(","):
        command = [sys.executable, "-m", "benchmarks.peak", *sys.argv[1:], "--one", str(int(length[:-1]) * 1024)]
        rows.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
        print(rows[-1], flush=True)
    print(json.dumps({"recipe": options.recipe, "chunk": options.chunk, "rows": rows}))


if __name__ == "__main__":
    main()
