"""The steps of suite.sh, one process each, until the time is up; see there.

GPUs of 24 and 8 GB are stood for by ``KVCLI_GPU_BYTES``, of which this process sets torch's fraction before the
program starts. A step that fails or finds no time is a line of the table like any other, and the next one begins.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvcli.models import spec as model_spec
from kvcli.models.weights import ModelSource
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.retaining_heads.module import RetainingHeads, shapes

LIMIT = 9 * 60 - 20
"""Seconds for everything, less what the last step needs to be stopped."""

SHAPES = Path(__file__).with_name("shapes")
CHUNK, ANSWER = 2048, 64
LOCRET = "locret(budget=16384, stabilizers=2048)"
WIDE = "locret(budget=32768, stabilizers=2048)"
SMALL = "locret(budget=6000, stabilizers=2048)"
FOUR, CODES = "+kivi(bits=4)", "+turbo(bits=4, fill=true)"


@dataclass(frozen=True)
class Step:
    """One ``kvcli bench``.

    Attributes:
        gpu: its size in GB, or 0 for all of it.
        graph: whether a step of the answer is one CUDA graph.
    """

    name: str
    shape: str
    tokens: str
    policies: tuple[str, ...]
    weights: str = "bf16"
    options: tuple[str, ...] = ()
    gpu: int = 0
    graph: bool = False

    def command(self) -> list[str]:
        words = ["bench", "--random-weights", str(SHAPES / self.shape), "-p", self.tokens, "-g", str(ANSWER)]
        for policy in self.policies:
            words += ["--policy", policy]
        return [*words, "--weights", self.weights, "--chunk-size", str(CHUNK), "--json", *self.options]


STEPS = (
    Step("8B bf16, 24 GB", "llama-3.1-8b", "128K", (LOCRET, LOCRET + FOUR), gpu=24),
    Step("8B nf4, 8 GB", "llama-3.1-8b", "128K", (SMALL + FOUR, LOCRET + CODES), "nf4", gpu=8),
    Step("8B bf16, against full", "llama-3.1-8b", "128K", (LOCRET, "full"), options=("--vs", "full")),
    Step("8B bf16, fill in codes", "llama-3.1-8b", "128K", (WIDE, WIDE + CODES), gpu=24),
    Step("mini bf16, 24 GB", "phi-3-mini", "128K", (SMALL, SMALL + FOUR), gpu=24),
    Step("mini nf4, 8 GB", "phi-3-mini", "128K", (SMALL + FOUR,), "nf4", gpu=8),
    Step("8B bf16, 1M in 24 GB", "llama-3.1-8b", "1M", (LOCRET,), gpu=24),
    Step("mini bf16, 1M in 24 GB", "phi-3-mini", "1M", (SMALL,), gpu=24),
    Step("8B bf16, graph", "llama-3.1-8b", "32K", (LOCRET, LOCRET + FOUR), graph=True),
    Step("mini bf16, against full", "phi-3-mini", "128K", (SMALL, "full"), options=("--vs", "full")),
    Step("8B nf4, 1M in 8 GB", "llama-3.1-8b", "1M", (SMALL + FOUR,), "nf4", gpu=8),
    Step("mini nf4, 1M in 8 GB", "phi-3-mini", "1M", (SMALL + FOUR,), "nf4", gpu=8),
)

TESTS = ["-m", "pytest", "-q", "tests/unit/kernels", "tests/laws/test_decode_step.py"]
TESTS_LIMIT = 120

# Run in front of the program: a GPU of so many bytes.
CAPPED = """
import os, sys, torch
size = int(os.environ["KVCLI_GPU_BYTES"])
if size:
    total = torch.cuda.get_device_properties(0).total_memory
    if size < total:
        torch.cuda.set_per_process_memory_fraction(size / total)
from kvcli.cli.app import run
sys.exit(run(sys.argv[1:]))
"""

COLUMNS = ["step", "recipe", "tokens", "prefill", "of matmul", "decode", "of memory", "peak+weights", "x full"]


def main(words: Sequence[str]) -> int:
    if "--dry-run" in words:
        return dry_run()
    folder = Path(words[0] if words else tempfile.mkdtemp(prefix="kvcli-gpu-"))
    import torch

    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured", file=sys.stderr)
        return 5
    gpu = torch.cuda.get_device_properties(0)
    head = f"{gpu.name} · {gpu.total_memory / 2**30:.0f} GiB · torch {torch.__version__} · CUDA {torch.version.cuda}"
    print(head, flush=True)
    return run(STEPS, folder, head)


def dry_run() -> int:
    """Say what would be run."""
    print(shlex.join(["python", *TESTS]))
    for step in STEPS:
        print(f"\n{step.name}\n  kvcli {shlex.join(step.command())}{'   # one CUDA graph' if step.graph else ''}")
        for policy in step.policies:
            room = f" of {step.gpu} GB" if step.gpu else ""
            print(f"  {policy}: {planned(step, policy) / 1e9:.1f} GB planned{room}")
    return 0


def planned(step: Step, policy: str) -> int:
    """Bytes at the peak of a step, weights and random heads included."""
    source = ModelSource(step.shape, SHAPES / step.shape, "directory", complete=False)
    spec = replace(model_spec.spec(source, device="cpu", dtype="bfloat16", stored=step.weights), device="cuda:0")
    width = RetainingHeads.like(replace(spec, layers=1)).width
    spec = replace(spec, heads_bytes=2 * spec.layers * width * (shapes(spec)[0][0] + spec.kv_heads))
    tokens = int(step.tokens[:-1]) * {"K": 2**10, "M": 2**20}[step.tokens[-1]]
    return memory.plan_run(spec, parse(policy), tokens=tokens, chunk=CHUNK, question=32, answer=ANSWER)[0].total


def run(steps: Sequence[Step], folder: Path, head: str, limit: float = LIMIT, tests: Sequence[str] = TESTS) -> int:
    """All steps whose figures are not in ``folder`` yet, then the table. 1 where something failed."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    code = _tests(folder, tests, min(limit, TESTS_LIMIT))
    lines = [COLUMNS, _said("kernels", "passed" if code == 0 else f"FAILED ({code}): {folder / 'kernels.log'}")]
    failed, peaks = code != 0, dict[tuple[str, ...], dict[int, int]]()
    for step in steps:
        left = limit - (time.monotonic() - began)
        try:
            result = _figures(step, folder, left)
        except _Missing as why:
            lines.append(_said(step.name, str(why)))
            failed |= why.failed
            continue
        weights = result["settings"]["model"]["weight_bytes"]
        for row in result["bench"]:
            lines.append(_line(step, row, weights))
            if row.get("peak_bytes") is not None:
                peaks.setdefault((step.shape, step.weights, row["recipe"]), {})[row["tokens"]] = (
                    row["peak_bytes"] + weights
                )
    print(f"\n{head} · {time.strftime('%Y-%m-%d')} · {folder}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for (shape, held, recipe), found in peaks.items():
        least, most = min(found), max(found)
        if least < most:
            grown = found[most] / found[least]
            print(f"{shape} {held}, {recipe}: {grown:.3f} times the memory at {most:,} as at {least:,} tokens")
    return int(failed)


def _tests(folder: Path, tests: Sequence[str], limit: float) -> int:
    """Exit code of the kernels' tests, now or when they passed."""
    passed = folder / "kernels.passed"
    with suppress(OSError):
        if passed.read_text() == shlex.join(tests):
            return 0
    print(f"kernels · at most {limit:.0f} s", flush=True)
    code, _ = _run([sys.executable, *tests], folder / "kernels.log", limit)
    if code == 0:
        passed.write_text(shlex.join(tests))
    return code


class _Missing(Exception):
    """Why a step has no figures."""

    def __init__(self, why: str, *, failed: bool) -> None:
        super().__init__(why)
        self.failed = failed


def _figures(step: Step, folder: Path, left: float) -> dict[str, Any]:
    """The JSON of a step, from an earlier run of the same command or from one now."""
    log = folder / f"{step.name.replace(' ', '-').replace(',', '')}.log"
    kept, command = log.with_suffix(".json"), [*step.command(), str(step.gpu), str(step.graph)]
    with suppress(OSError, ValueError, KeyError, TypeError):
        earlier = json.loads(kept.read_text())
        if earlier["command"] == command:
            print(f"{step.name} · measured {earlier['date']}", flush=True)
            found: dict[str, Any] = earlier["result"]
            return found
    print(f"{step.name} · {left:.0f} s left", flush=True)
    if left < 20:
        raise _Missing("no time left", failed=False)
    code, out = _run([sys.executable, "-c", CAPPED, *step.command()], log, left, step.gpu * 10**9, graph=step.graph)
    if code == 124:
        raise _Missing("no time left", failed=False)
    try:
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        result = {}
    if code or "bench" not in result:
        said = log.read_text(errors="replace").strip().splitlines()[-2:]
        raise _Missing(f"FAILED ({code}): {' '.join(said)[:160]}", failed=True)
    kept.write_text(json.dumps({"command": command, "date": time.strftime("%Y-%m-%d %H:%M"), "result": result}))
    return result


def _run(command: list[str], log: Path, limit: float, gpu: int = 0, *, graph: bool = False) -> tuple[int, str]:
    """Exit code, 124 where the time was up, and standard output; standard error goes to ``log``."""
    own = {"PYTHONPATH": f".{os.pathsep}kernels{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    own["KVCLI_CUDA_GRAPH"] = str(int(graph))
    environment = {**os.environ, **own, "KVCLI_GPU_BYTES": str(gpu), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # tests have children, and the GPU is wanted by the next step
            process.communicate()
            return 124, ""
        if process.returncode:
            errors.write(out[-4000:])  # what pytest found wrong
    return process.returncode, out


def _said(name: str, what: str) -> list[str]:
    return [name, what, *[""] * (len(COLUMNS) - 2)]


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
    sys.exit(main(sys.argv[1:]))
