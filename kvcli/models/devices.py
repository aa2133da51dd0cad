"""The devices that torch can use here, and how fast each multiplies."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from kvcli.models.defaults import default_dtype

SIDE = 1024
"""Side of the square matrices that are multiplied to measure speed."""


@dataclass(frozen=True)
class Device:
    """``cpu`` or ``cuda:N``; sizes in bytes, speed in 10^9 operations per second.

    ``gflops`` is the speed in ``dtype``, the device's default; ``None`` if it cannot multiply such matrices, and
    ``problem`` then says why.
    """

    name: str
    dtype: str
    gflops: float | None
    problem: str | None = None
    card: str | None = None
    capability: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None


def devices() -> list[Device]:
    """All devices, each measured for about 0.3 seconds."""
    return [_measured(name) for name in ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]]


def _measured(name: str) -> Device:
    speed, problem, dtype = None, None, default_dtype(name)
    try:
        speed = round(gflops(name, dtype), 1)
    except RuntimeError as error:
        problem = str(error)
    if name == "cpu":
        return Device(name, dtype, speed, problem)
    free, total = torch.cuda.mem_get_info(name)
    major, minor = torch.cuda.get_device_capability(name)
    return Device(name, dtype, speed, problem, torch.cuda.get_device_name(name), f"{major}.{minor}", total, free)


def gflops(device: str, dtype: str, seconds: float = 0.3) -> float:
    """Matrix multiplications for about ``seconds``, in 10^9 operations per second."""
    a = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype), device=device)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    a @ a  # the first product is slow: it chooses kernels and allocates memory
    wait()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ a
        wait()
        n += 1
    return float(2 * SIDE**3 * n / (time.perf_counter() - start) / 1e9)
