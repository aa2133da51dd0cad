"""The steps of suite.sh, one process each, until the time is up; see there.

Cards of 24 and 8 GB are stood for by ``KVCLI_CARD_BYTES``, of which this process sets torch's fraction before the
program starts. A step that fails or finds no time is a line of the table like any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 9 * 60 - 20
"""Seconds for everything, less what the last step needs to be stopped."""

SHAPES = Path(__file__).with_name("shapes")
LOCRET = "locret(budget=16384, stabilizers=2048)"


@dataclass(frozen=True)
class Step:
    """One ``kvcli bench``: shape, lengths, recipes, further options, and the card's size in GB or 0 for all of it, and
    whether a step of the answer is one CUDA graph."""

    name: str
    shape: str
    tokens: str
    policies: tuple[str, ...]
    options: tuple[str, ...] = ()
    card: int = 0
    graph: bool = False

    def command(self) -> list[str]:
        words = ["bench", "--random-weights", str(SHAPES / f"{self.shape}.json"), "-p", self.tokens, "-g", "64"]
        for policy in self.policies:
            words += ["--policy", policy]
        return [*words, "--chunk-size", "2048", "--json", *self.options]


STEPS = (
    Step("8B bf16, 24 GB", "llama-3.1-8b", "128K", (LOCRET, f"{LOCRET}+kivi(bits=4)"), card=24),
    Step("8B nf4, 8 GB", "llama-3.1-8b", "128K", (f"{LOCRET}+kivi(bits=4)",), ("--weights", "nf4"), card=8),
    Step("8B bf16, against full", "llama-3.1-8b", "128K", (LOCRET, "full"), ("--vs", "full")),
    Step("mini bf16, 24 GB", "phi-3-mini", "128K", ("locret(budget=6000, stabilizers=2048)",), card=24),
    Step("mini bf16, 1M in 24 GB", "phi-3-mini", "1M", ("locret(budget=6000, stabilizers=2048)",), card=24),
    Step("8B bf16, 1M in 24 GB", "llama-3.1-8b", "1M", (LOCRET,), card=24),
    Step("8B bf16, graph", "llama-3.1-8b", "32K", (LOCRET, f"{LOCRET}+kivi(bits=4)"), graph=True),
    Step("8B bf16, host, graph", "llama-3.1-8b", "32K", ("full+shadowkv", "full+infinigen"), graph=True),
)

# Run in front of the program: a card of so many bytes.
CAPPED = """
import os, sys, torch
size = int(os.environ["KVCLI_CARD_BYTES"])
if size:
    total = torch.cuda.get_device_properties(0).total_memory
    if size < total:
        torch.cuda.set_per_process_memory_fraction(size / total)
from kvcli.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def main() -> int:
    began = time.monotonic()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="kvcli-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    import torch

    if not torch.cuda.is_available():
        print("no CUDA card here: nothing was measured", file=sys.stderr)
        return 5
    card = torch.cuda.get_device_properties(0)
    head = f"{card.name} · {card.total_memory / 2**30:.0f} GiB · torch {torch.__version__} · CUDA {torch.version.cuda}"
    print(head, flush=True)
    lines = [["step", "recipe", "tokens", "prefill", "of matmul", "decode", "of memory", "peak+weights", "x full"]]
    code, _ = _run(
        [sys.executable, "-m", "pytest", "-q", "tests/kernels", "tests/laws/test_step.py", "tests/hold/test_steady.py"],
        folder / "kernels.log",
        120,
    )
    lines.append(["kernels", "passed" if code == 0 else f"FAILED ({code})", *[""] * 7])
    failed = code != 0
    for step in STEPS:
        left = LIMIT - (time.monotonic() - began)
        log = folder / f"{step.name.replace(' ', '-').replace(',', '')}.log"
        print(f"{step.name} · {left:.0f} s left", flush=True)
        if left < 20:
            lines.append([step.name, "no time left", *[""] * 7])
            continue
        code, out = _run(
            [sys.executable, "-c", CAPPED, *step.command()], log, left, step.card * 10**9, graph=step.graph
        )
        if code:
            said = log.read_text().strip().splitlines()[-2:]
            lines.append([step.name, "no time left" if code == 124 else f"FAILED: {' '.join(said)[:160]}", *[""] * 7])
            failed |= code != 124
            continue
        result = json.loads(out.splitlines()[-1])
        log.with_suffix(".json").write_text(json.dumps(result))
        lines += [_line(step, row, result["settings"]["model"]["weight_bytes"]) for row in result["bench"]]
    print(f"\n{head} · {time.strftime('%Y-%m-%d')} · {folder}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return int(failed)


def _run(command: list[str], log: Path, limit: float, card: int = 0, *, graph: bool = False) -> tuple[int, str]:
    """Exit code, 124 where the time was up, and standard output; standard error goes to ``log``."""
    own = {"PYTHONPATH": f".{os.pathsep}kernels{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    own["KVCLI_CUDA_GRAPH"] = str(int(graph))
    environment = {**os.environ, **own, "KVCLI_CARD_BYTES": str(card), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return 124, ""
    return done.returncode, done.stdout


def _line(step: Step, row: dict[str, Any], weights: int) -> list[str]:
    if row["skipped"]:
        return [step.name, row["recipe"], f"{row['tokens']:,}", f"skipped: {row['skipped']}"[:80], *[""] * 5]
    times = row["times_full"]
    return [
        step.name,
        row["recipe"],
        f"{row['tokens']:,}",
        f"{row['prefill_tps']:,.0f}/s",
        f"{row['matmul_share']:.0%}",
        f"{row['decode_tps']:,.1f}/s",
        f"{row['bandwidth_share']:.0%}",
        f"{(row['peak_bytes'] + weights) / 2**30:.1f} GiB" if row["peak_bytes"] is not None else "?",
        f"{times['prefill']} · {times['decode']}" if times else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
