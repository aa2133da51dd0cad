"""Speed and memory of a model shape with random weights: many rows in one process, each kept when it is measured.

    python -m benchmarks.gpu.measure --shape llama-3.1-8b "locret(budget=16384)@128K" transformers@128K
    python -m benchmarks.gpu.measure --shape llama-3.1-8b --weights nf4 --gpu 8 "graph:locret(budget=6000)@32K"

A row is ``RECIPE@TOKENS``, ``transformers@TOKENS`` for full attention by transformers, or ``graph:RECIPE@TOKENS`` for
decode steps as one CUDA graph. Prefill and answer are those of ``kvcli bench``, and so is the check before them. A row
that fails the check is measured all the same, says so in ``check_error``, and is not for ``docs/``.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.contact import setting
from benchmarks.gpu.output import measured, record
from benchmarks.provenance import machine
from kvcli.bench import roofline
from kvcli.bench.check import check
from kvcli.bench.report import BenchRow
from kvcli.bench.roofline import Roofline
from kvcli.bench.run import full, measure
from kvcli.errors import KvcliError, ModelError
from kvcli.events import drain
from kvcli.models.model import Model
from kvcli.models.random_weights import build
from kvcli.recipe import parse
from kvcli.retaining_heads.module import RetainingHeads

SHAPES = Path(__file__).with_name("shapes")
SIZES = {"K": 2**10, "M": 2**20}
BROKEN = 3
"""Exit code if the GPU failed in a way after which this process can measure nothing more."""


@dataclass(frozen=True)
class Wanted:
    """One row that is asked for."""

    recipe: str
    tokens: int
    graph: bool = False

    @classmethod
    def parse(cls, text: str) -> Wanted:
        name, _, size = text.removeprefix("graph:").rpartition("@")
        return cls(name, int(float(size.rstrip("KM")) * SIZES.get(size[-1], 1)), text.startswith("graph:"))


def shaped(name: str, *, device: str | None, dtype: str | None, weights: str) -> Model:
    """A model with random weights and random retaining heads.

    Args:
        name: one of ``benchmarks/gpu/shapes``, or a directory with a ``config.json``.
        device, dtype, weights: as for :func:`kvcli.models.random_weights.build`.
    """
    folder = SHAPES / name
    model = build(folder if folder.exists() else Path(name), device=device, dtype=dtype, weights=weights)
    torch.manual_seed(1)
    model.heads = RetainingHeads.like(model.spec).requires_grad_(False).to(model.device, model.dtype)
    return model


def cap(gigabytes: float) -> None:
    """Let torch allocate no more of the GPU than a smaller one has; 0 allows all."""
    if gigabytes and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))


def one(model: Model, wanted: Wanted, top: Roofline, *, chunk: int, answer: int, repeat: int) -> dict[str, Any]:
    """Measure a row. Raises whatever goes wrong, but for a failed check."""
    failed = {}
    with setting("KVCLI_CUDA_GRAPH", str(int(wanted.graph))):
        if wanted.recipe == "transformers":
            row = BenchRow(wanted.recipe, wanted.tokens, None, full(model, wanted.tokens, answer))
        else:
            recipe = parse(wanted.recipe)
            checked = None
            try:
                checked = check(model, recipe)
            except ModelError as error:
                failed["check_error"] = error.message
            speed = drain(measure(model, recipe, wanted.tokens, answer, chunk=chunk, repeat=repeat))
            row = BenchRow(wanted.recipe, wanted.tokens, checked, speed)
    found = row.to_json(top, None)
    return {name: found[name] for name in found if name not in ("times_full", "times_llamacpp")} | failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--gpu", type=float, default=0, help="size of the GPU that is stood for, GB; 0 for all of it")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    missing = [text for text in options.rows if not measured(text)]
    if not missing:
        return 0
    cap(options.gpu)
    model = shaped(options.shape, device=options.device, dtype=options.dtype, weights=options.weights)
    spec = model.spec
    top = Roofline(roofline.matmul(spec, options.chunk), roofline.bandwidth(spec.device))
    of_all = {
        "shape": options.shape,
        "weights": options.weights,
        "gpu_gb": options.gpu,
        "dtype": spec.dtype,
        "weight_bytes": spec.weight_bytes,
        "chunk": options.chunk,
        "answer": options.answer,
        "repeat": options.repeat,
        "matmul_tflops": round(top.matmul / 1e12, 1),
        "bandwidth_gbs": round(top.bandwidth / 1e9),
        "machine": machine(),
    }
    failed = False
    for text in missing:
        wanted = Wanted.parse(text)
        row: dict[str, Any] = {"key": text, "recipe": wanted.recipe, "tokens": wanted.tokens, "graph": wanted.graph}
        try:
            row |= one(model, wanted, top, chunk=options.chunk, answer=options.answer, repeat=options.repeat)
        except KvcliError as error:
            failed, row["error"] = True, error.message
        except Exception as error:
            failed, row["error"] = True, f"{type(error).__name__}: {error}"[:400]
            row["trace"] = traceback.format_exc()[-3000:]
        failed |= "check_error" in row
        record({**row, **of_all})
        if model.device.type == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:
                return BROKEN
    return int(failed)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a GPU that failed must not keep the process
