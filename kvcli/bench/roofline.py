"""The roofline: peak arithmetic and bandwidth of the machine, measured in the same run, and a run's needs.

Prefill is bound by matrix products and compared with the model's projections alone. Decode is bound by memory: each
token reads all weights and kept units once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from kvcli.planning.positions import kept_units
from kvcli.recipe import Recipe
from kvcli.types import ModelSpec

_ENOUGH, _LEAST = 0.4, 4  # seconds and repetitions of one measurement
_GPU_ROWS = 4096  # tokens at a time that a GPU multiplies at full speed
_BUFFER = {"cpu": 256 * 2**20, "cuda": 2**30}  # bytes, far beyond any cache


def synchronize(device: str) -> None:
    """Wait until the device has finished; a no-op on the CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _fastest(work: Callable[[], object], device: str) -> float:
    """Return the seconds of the fastest repetition."""
    for _ in range(2):
        work()
    synchronize(device)
    best, spent, done = float("inf"), 0.0, 0
    while spent < _ENOUGH or done < _LEAST:
        began = perf_counter()
        work()
        synchronize(device)
        seconds = perf_counter() - began
        best, spent, done = min(best, seconds), spent + seconds, done + 1
    return best


@torch.inference_mode()
def matmul(spec: ModelSpec, chunk: int) -> float:
    """Measure FLOP/s of one layer's projections in the model's dtype, ``chunk`` tokens at a time (at least 4,096 on a
    GPU)."""
    rows = chunk if spec.device == "cpu" else max(chunk, _GPU_ROWS)
    place = {"dtype": getattr(torch, spec.dtype), "device": spec.device}
    pairs = [(torch.randn(rows, i, **place), torch.randn(o, i, **place)) for o, i in _projections(spec)]
    flop = sum(2 * rows * w.numel() for _, w in pairs)

    def once() -> None:
        for x, w in pairs:
            torch.nn.functional.linear(x, w)

    return flop / _fastest(once, spec.device)


@torch.inference_mode()
def bandwidth(device: str) -> float:
    """Measure bytes per second: the faster of summing and copying a large buffer."""
    size = _BUFFER[torch.device(device).type]
    buffer = torch.ones(size // 4, device=device)
    other = torch.empty_like(buffer)
    return max(
        size / _fastest(buffer.sum, device),
        2 * size / _fastest(lambda: other.copy_(buffer), device),
    )


def _projections(spec: ModelSpec) -> list[tuple[int, int]]:
    """Return the shapes ``(out, in)`` of a layer's matrices."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    mlp = [(spec.intermediate, spec.hidden)] * 2 + [(spec.hidden, spec.intermediate)]
    return [(q, spec.hidden), (kv, spec.hidden), (kv, spec.hidden), (spec.hidden, q), *mlp]


def prefill_flop(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, probe: int = 0) -> float:
    """Count the FLOP of projections and attention in prefill: kept units, and each chunk's triangle.

    Excludes a policy's scores and the language-model head, which prefill does not use.

    Args:
        spec, recipe, tokens, chunk, probe: as for :func:`kvcli.planning.memory.plan`.
    """
    matrices = _matrix_flop(spec)
    total, owners = 0.0, recipe.share.owners(spec)
    for start in range(0, tokens, chunk):
        new = min(chunk, tokens - start) + probe
        total += matrices * new
        for layer in range(spec.layers):
            seen = kept_units(spec, recipe, start, owners[layer])
            own = spec.of_layer(layer)
            total += 4.0 * own.heads * own.head_dim * new * (seen + (new + 1) / 2)
    return total


def full_flop(spec: ModelSpec, tokens: int) -> float:
    """Count the floating-point operations of one causal forward pass over all tokens."""
    widths = sum(own.heads * own.head_dim for own in map(spec.of_layer, range(spec.layers)))
    return _matrix_flop(spec) * tokens + 4.0 * widths * tokens * (tokens + 1) / 2


def _matrix_flop(spec: ModelSpec) -> float:
    """Floating-point operations of one token in the matrices of all layers."""
    return 2.0 * (spec.multiplied or spec.layers * sum(o * i for o, i in _projections(spec)))


@dataclass(frozen=True)
class Roofline:
    """FLOP/s and bytes per second, each the best of several measurements in one run."""

    matmul: float
    bandwidth: float

    def better(self, other: Roofline) -> Roofline:
        return Roofline(max(self.matmul, other.matmul), max(self.bandwidth, other.bandwidth))
