"""What is best for each device and model if nothing is named. Imports no torch."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from kvcli.errors import UsageError
from kvcli.types import AMX_CHUNK, CHUNK, DTYPE_BYTES, GPU_CHUNK, ModelSpec

ASKED_BY_EXAMPLES = ("smollm2-135m",)
"""Models that answer questions more often rightly from worked examples over quotes than by their chat template. Others
were not measured (docs/results/everyday.md)."""


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
    wide = GPU_CHUNK if spec.device.startswith("cuda") else AMX_CHUNK if "amx_tile" in cpu_flags() else CHUNK
    return min(wide, max(CHUNK, spec.max_positions // 4))


def default_device() -> str:
    """The first CUDA GPU, else the CPU. Asks the driver if torch was built for CUDA."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not _torch_has("cuda"):
        return "cpu"
    try:
        import pynvml

        pynvml.nvmlInit()
        return "cuda:0" if pynvml.nvmlDeviceGetCount() else "cpu"
    except Exception:  # no driver, or one that does not answer: each raises something of its own
        return "cpu"


def device_name(name: str | None) -> str:
    """The name of a device of this machine, with its number; by default the best one. Raises ``UsageError``."""
    name = name or default_device()
    check_placement(name, None)
    if name != "cpu" and default_device() == "cpu":
        hint = "--device cpu, or --gpu 4090 for a GPU that is not here"
        raise UsageError(f"this machine has no device '{name}'", hint)
    return "cuda:0" if name == "cuda" else name


def check_placement(device: str | None, dtype: str | None) -> None:
    """Refuse a device or dtype that cannot be, without torch; torch may still refuse others.

    Raises:
        UsageError: no such device or dtype.
    """
    known_dtype(dtype)
    if device is not None and re.fullmatch(r"mps|xpu", device):
        raise UsageError(f"--device {device} is not supported: kvcli runs on CPUs and CUDA GPUs", "--device cpu")
    if device is not None and re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise UsageError(f"'{device}' is not a device", "--device cpu")
    if device not in (None, "cpu") and not _may_have_gpu():
        raise UsageError(f"this machine has no device '{device}'", "--device cpu")


def _may_have_gpu() -> bool:
    """Whether torch may find a GPU. The driver's library does not know those of every board."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not _torch_has("cuda|hip"):
        return False
    nodes = ("nv*", "dxg", "kfd")
    return default_device() != "cpu" or any(next(Path("/dev").glob(name), None) for name in nodes)


def known_dtype(dtype: str | None) -> str | None:
    """Return the name of a dtype. Raises ``UsageError`` if it is unknown."""
    if dtype is not None and dtype not in DTYPE_BYTES:
        raise UsageError(f"unknown dtype '{dtype}'; expected one of {', '.join(DTYPE_BYTES)}")
    return dtype


def _torch_has(kind: str) -> bool:
    """Whether torch was built for a kind of GPU."""
    found = find_spec("torch")
    for place in (found.submodule_search_locations if found else None) or ():
        try:
            text = (Path(place) / "version.py").read_text()
        except OSError:
            return False
        return re.search(rf"^(?:{kind})\b.*= *['\"]", text, re.MULTILINE) is not None
    return False
