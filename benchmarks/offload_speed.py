"""Time of a token after a long text: storages that offload, full attention, and full offload, in turn in one run.

    python -m benchmarks.offload_speed --text book.txt --tokens 4K --rounds 9
    python -m benchmarks.offload_speed --shape llama-3.1-8b --tokens 64K --recipes "shadowkv(rank=160)" infinigen

With ``--shape`` the model has random weights and reads random tokens (:mod:`benchmarks.gpu.measure`). Each round takes
one step after every recipe's prefill. ``streamed`` is full offload: at each step all keys and values of a layer are
copied from host memory to one buffer. The last line of standard output is JSON with medians of seconds, medians of
each round's ratios to ``dense`` and to ``streamed``, and bytes on the device and on the host.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.gpu.measure import shaped
from benchmarks.gpu.output import measured, record
from benchmarks.offload import RECIPES, Watching
from benchmarks.passkey import load
from kvcli.bench.check import draw
from kvcli.cache.context import Context, freeze
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import new_prefill_cache, prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.recipe import Recipe, parse
from kvcli.storage.base import Staging
from kvcli.storage.dense import DenseLayer
from kvcli.storage.offload.host_store import to_host
from kvcli_kernels.attention import attention
from tests.laws.helpers import drain


@dataclass(frozen=True)
class Streamed(DenseLayer):
    """Full offload: everything comes at each step."""

    @property
    def nbytes(self) -> int:
        """Nothing of it stays on the device."""
        return 0

    @property
    def host_nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def open(self, staging: Staging | None = None) -> Streamed:
        assert staging is not None
        staging.register(*self.k.shape)
        return _Streaming(**vars(self), staging=staging)


@dataclass(frozen=True, kw_only=True)
class _Streaming(Streamed):
    staging: Staging

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        k, v = (self.staging.buffer(name, q, *self.k.shape) for name in ("all k", "all v"))
        for target, source in ((k, self.k), (v, self.v)):
            for one, other in zip(target, source, strict=True):
                one.copy_(other, non_blocking=True)
        return attention(q, k, v, scale, q_start, self.window)


def streamed(context: Context, device: torch.device) -> Context:
    """A dense context with its layers in host memory."""
    layers = [
        Streamed(to_host(x.k, device), to_host(x.v, device), x.pos, x.window)
        for x in context.layers
        if isinstance(x, DenseLayer)
    ]
    return replace(context, layers=layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--shape")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--tokens", default="4K")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recipes", nargs="*", default=RECIPES[1:])
    options = parser.parse_args()
    if (options.text is None) == (options.shape is None):
        parser.error("expected either --text or --shape")
    if measured("steps"):
        return
    count = int(options.tokens.removesuffix("K")) * (1024 if options.tokens.endswith("K") else 1)
    if options.shape:
        model = shaped(options.shape, device=options.device, dtype=options.dtype, weights="bf16")
        ids = draw(model, count, 3)
    else:
        model = load("smollm2-135m")
        ids = Prompt(model.tokenizer).document(options.text.read_text())[:count]
    holds = {text: parse(f"full+{text}").storage for text in ["dense", *options.recipes]}
    watching = Recipe(parse("full").policy, Watching(holds=tuple(holds.values())))
    work = new_prefill_cache(model, watching, len(ids))
    drain(prefill_steps(model, ids, watching, resume=work, horizon=max(8192, count + 256)))
    tails: dict[str, DecodeCache] = {}
    with torch.inference_mode():
        for name, hold in holds.items():
            tails[name] = new_decode_cache(model, freeze(work, hold, release=False))
        dense = tails["dense"].context
        assert dense is not None
        tails["streamed"] = new_decode_cache(model, streamed(dense, model.device))
    seconds: dict[str, list[float]] = {name: [] for name in tails}
    for number in range(options.rounds + 3):  # the first warm up
        for name, tail in tails.items():
            began = perf_counter()
            model.forward(torch.tensor([ids[100 + number]], device=model.device), tail, logits=True)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(perf_counter() - began)
            tail.extend(1)
    found = {}
    for name, spent in seconds.items():
        ratios = {
            base: round(median(b / a for a, b in zip(spent[3:], seconds[base][3:], strict=True)), 2)
            for base in ("dense", "streamed")
        }
        context = tails[name].context
        assert context is not None
        sizes = {"device_bytes": context.nbytes, "host_bytes": context.host_nbytes}
        found[name] = {"median_s": round(median(spent[3:]), 5), "times_as_fast_as": ratios, **sizes}
    record({"key": "steps", "tokens": len(ids), "rounds": options.rounds, "model": model.name, "steps": found})


if __name__ == "__main__":
    main()
