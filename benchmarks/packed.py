"""Decode attention straight on packed keys and values, beside dense ones: one layer of the default model.

    python -m benchmarks.packed

The least of many repetitions, on one thread; ``error`` is the relative RMS distance from float32 attention over the
unpacked numbers rounded to bfloat16, so it is that rounding too.
"""

import json
from collections.abc import Callable
from time import perf_counter

import torch

from kvcli.recipe import parse
from kvcli.storage.base import KeptUnits
from kvcli_kernels.attention import attention, ref

HEADS, KV_HEADS, DIM = 9, 3, 64


def least(work: Callable[[], object], count: int = 60) -> float:
    """Seconds."""
    times = []
    for _ in range(count):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return min(times)


@torch.inference_mode()  # as the engine runs
def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n in (1024, 4096, 16384):
        q = torch.randn(HEADS, 1, DIM).bfloat16()
        k, v = (torch.randn(KV_HEADS, n, DIM).bfloat16() for _ in range(2))
        dense = least(lambda: attention(q, k, v, 0.125, n))  # noqa: B023
        print(f"{n:6,} dense {dense * 1e6:8.0f} us")
        for hold in ("int8", "kivi(bits=4)", "kivi(bits=2)", "turbo(bits=4)", "turbo(bits=2)"):
            pos = torch.arange(n).expand(KV_HEADS, -1)
            layer = parse(f"full+{hold}").storage.freeze(KeptUnits(k, v, pos, None))
            time = least(lambda: layer.attend(q, 0.125, n))  # noqa: B023
            exact = ref.attention(q, *(t.float() for t in layer.dense()), 0.125, n)[0].float()
            error = float((layer.attend(q, 0.125, n)[0].float() - exact).norm() / exact.norm())
            rows.append({"n": n, "hold": hold, "us": time * 1e6, "x": time / dense, "error": error})
            print(f"       {hold:14} {time * 1e6:8.0f} us  {time / dense:5.2f}x  error {error:.4f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
