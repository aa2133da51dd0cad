"""Peak memory against tokens read: ``locret`` and full attention, one fresh process for each point.

    python -m benchmarks.memory --lengths 1K,4K,16K,64K --full 1K,4K,16K --out memory.jsonl

The model has the default model's shape, random weights, and a window that holds the longest text, so that full
attention is not stopped by the window. Memory does not depend on the weights. Each point is one run of ``kvcli bench``.
A second run with the same file continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from kvcli.evaluate.build_cases import lengths
from kvcli.events import drain
from kvcli.models.resolve import resolve

LOCRET = "locret(budget=1024, stabilizers=64, sinks=48)"
FIELDS = ("recipe", "tokens", "peak_bytes", "planned_bytes", "kv_bytes", "kept", "dtype")


def shape(model: str, window: int, folder: Path) -> Path:
    """The ``config.json`` of a model with a window of ``window`` tokens."""
    config = json.loads((Path(drain(resolve(model)).path) / "config.json").read_text())
    path = folder / f"{model}.json"
    path.write_text(json.dumps(config | {"max_position_embeddings": window}))
    return path


def measure(config: Path, recipe: str, tokens: int) -> dict[str, Any]:
    """The row of ``kvcli bench`` for one recipe and length, from a process of its own."""
    words = ["bench", "-q", "--json", "-g", "2", "-p", str(tokens), "--policy", recipe, "--random-weights", str(config)]
    done = subprocess.run([sys.executable, "-m", "kvcli", *words], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {**result["bench"][0], "dtype": result["settings"]["model"]["dtype"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="whose shape the model has")
    parser.add_argument("--lengths", default="1K,4K,8K,16K,32K,64K")
    parser.add_argument("--full", default="1K,4K,8K,16K", help="lengths that full attention reads")
    parser.add_argument("--recipe", default=LOCRET)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = f"python -m benchmarks.memory --lengths {options.lengths} --full {options.full} --out memory.jsonl"
    ours, full = lengths(options.lengths, "--lengths"), lengths(options.full, "--full")
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    finished = {(row["recipe"], row["tokens"]) for row in done}
    with tempfile.TemporaryDirectory() as folder, options.out.open("a") as out:
        config = shape(options.model, 2 * max(*ours, *full), Path(folder))
        for recipe, tokens in [*((options.recipe, n) for n in ours), *(("full", n) for n in full)]:
            if (recipe, tokens) in finished:
                continue
            row = measure(config, recipe, tokens)
            kept = {"table": "memory"} | {
                k: row[k] for k in ("recipe", "tokens", "peak_bytes", "planned_bytes", "kv_bytes", "kept", "dtype")
            }
            out.write(json.dumps(kept | provenance(command, n=1)) + "\n")
            out.flush()
            print(f"{tokens:>9,} tokens  {row['peak_bytes'] / 2**20:>8,.1f} MiB  {recipe}", flush=True)


if __name__ == "__main__":
    main()
