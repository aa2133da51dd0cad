"""Memory of this process in bytes, what is left for it, and how it gives freed memory back."""

import ctypes
import sys
from functools import cache
from typing import Any


def resident() -> int:
    """Main memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def age() -> float:
    """Seconds since this process began."""
    import time

    import psutil

    return time.time() - float(psutil.Process().create_time())


def peak(device: str) -> int:
    """The most it has taken so far on ``device``: allocated GPU memory, or resident main memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not a POSIX system
        return resident()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def used_and_total(device: str) -> tuple[int, int]:
    """Memory in use and there is, of the GPU, or of this process and the machine."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return int(total - free), int(total)
    import psutil

    return resident(), int(psutil.virtual_memory().total)


def host_available() -> int:
    """Bytes of RAM that are free or reclaimable."""
    return available("cpu")


def available(device: str) -> int:
    """Bytes that can still be taken on a device: free GPU memory, or RAM that is free or reclaimable."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    return int(psutil.virtual_memory().available)


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    if (give_back := _malloc_trim()) is not None:
        give_back(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
