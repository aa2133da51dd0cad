"""What the time of prefill and of decoding goes into: the kernels of a GPU, by their share of the device's time.

    python -m benchmarks.gpu.profile --shape llama-3.1-8b --recipe "locret(budget=16384)" --tokens 32K

The last four chunks of a prefill and 16 decode steps are profiled with ``torch.profiler``. ``busy`` is the device's
time in kernels divided by the time that passed: the rest is waiting for the host.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.measure import Wanted, cap, shaped
from benchmarks.gpu.output import measured, record
from kvcli.bench.check import draw
from kvcli.bench.roofline import synchronize
from kvcli.bench.run import QUESTION
from kvcli.cache.context import freeze
from kvcli.engine.decode_step import make_decode_step
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import new_prefill_cache, prefill_steps
from kvcli.events import drain
from kvcli.models.model import Model
from kvcli.recipe import parse

CHUNKS, STEPS, MOST = 4, 16, 14


def phases(model: Model, wanted: Wanted, chunk: int) -> dict[str, Callable[[], None]]:
    """The two pieces of work, the second after the first."""
    recipe, ids = parse(wanted.recipe), draw(model, wanted.tokens, 3)
    cache = new_prefill_cache(model, recipe, len(ids))
    before = max(0, len(ids) - CHUNKS * chunk) // chunk * chunk
    given = {"chunk": chunk, "resume": cache, "horizon": len(ids) + QUESTION + STEPS}
    if before:
        drain(prefill_steps(model, ids[:before], recipe, **given))  # type: ignore[arg-type]

    def prefill() -> None:
        drain(prefill_steps(model, ids, recipe, **given))  # type: ignore[arg-type]

    def decode() -> None:
        decode_cache = new_decode_cache(model, freeze(cache, recipe.storage, release=False))
        decode_cache.mark()
        decode_cache.reserve(decode_cache.length + STEPS + 8)
        step = make_decode_step(model, decode_cache)
        for number in draw(model, STEPS, 5):
            step(torch.tensor([number], device=model.device))
            decode_cache.extend(1)

    return {"prefill": prefill, "decode": decode}


def kernels(work: Callable[[], None], device: str) -> dict[str, Any]:
    """The kernels that take most of the device's time, in milliseconds and shares."""
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(device)
    with profile(activities=activities) as found:
        began = perf_counter()
        work()
        synchronize(device)
        seconds = perf_counter() - began
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda e: -getattr(e, key))
    if on_gpu:  # operators carry the time of their kernels once more
        events = [e for e in events if str(e.device_type).endswith("CUDA")]
    total = sum(getattr(e, key) for e in events) or 1
    top = [
        {
            "name": e.key[:90],
            "calls": e.count,
            "ms": round(getattr(e, key) / 1e3, 2),
            "share": round(getattr(e, key) / total, 3),
        }
        for e in events[:MOST]
    ]
    return {"seconds": round(seconds, 4), "busy": round(total / 1e6 / seconds, 3), "kernels": top}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--tokens", default="32K")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--gpu", type=float, default=0)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    key = f"{options.recipe}@{options.tokens}"
    if measured(f"{key} decode"):
        return
    cap(options.gpu)
    model = shaped(options.shape, device=options.device, dtype=options.dtype, weights=options.weights)
    with torch.inference_mode():
        for name, work in phases(model, Wanted.parse(key), options.chunk).items():
            row = {"key": f"{key} {name}", "recipe": options.recipe, "phase": name, "shape": options.shape}
            record(row | kernels(work, model.spec.device))


if __name__ == "__main__":
    main()
