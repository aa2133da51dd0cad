"""What a device does best: the dtype of weights and cache, and the tokens of a step of prefill. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kvcli.types import AMX_CHUNK, CARD_CHUNK, CHUNK


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


def default_chunk(device: str) -> int:
    """The tokens of a forward pass of prefill on ``cpu`` or ``cuda:0``, unless others are named."""
    if device.startswith("cuda"):
        return CARD_CHUNK
    return AMX_CHUNK if "amx_tile" in cpu_flags() else CHUNK
