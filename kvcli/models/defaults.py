"""What a device does best: the dtype of weights and cache, and the tokens of a step of prefill. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kvcli.types import AMX_CHUNK, CARD_CHUNK, CHUNK, ModelSpec


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction set extensions of this CPU as Linux names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(found, "").split())


def default_dtype(device: str) -> str:
    """bfloat16 if the device multiplies it natively, else float32."""
    native = device.startswith("cuda") or {"avx512_bf16", "amx_tile"} & cpu_flags()
    return "bfloat16" if native else "float32"


def default_chunk(spec: ModelSpec) -> int:
    """The tokens of a forward pass of prefill, unless others are named.

    A small context window has room for kept units beside a small chunk only.
    """
    wide = CARD_CHUNK if spec.device.startswith("cuda") else AMX_CHUNK if "amx_tile" in cpu_flags() else CHUNK
    return min(wide, max(CHUNK, spec.max_positions // 4))
