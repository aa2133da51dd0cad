"""The C library's heap: what is freed in it stays with the process until it is asked for."""

import ctypes
from functools import cache
from typing import Any


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
