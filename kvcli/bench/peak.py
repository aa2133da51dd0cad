"""Peak memory above a baseline."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path

import torch

from kvcli.utils.process_memory import trim

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Peak bytes since the start: allocated GPU memory, or resident main memory (Linux)."""

    def __init__(self, device: str) -> None:
        self.device = device
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = int(torch.cuda.memory_allocated(device))
            return
        trim()  # memory freed by earlier work would hide this work's allocations
        self.before = None
        with suppress(OSError, StopIteration):
            _RESET.write_text("5")
            self.before = resident("VmRSS")

    def bytes(self) -> int | None:
        """Return the peak so far; ``None`` if the system does not count it."""
        if self.before is None:
            return None
        if self.device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        return resident("VmHWM") - self.before


def resident(field: str) -> int:
    """Read ``VmRSS`` (current) or ``VmHWM`` (peak since the last reset) in bytes. Linux only."""
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024
