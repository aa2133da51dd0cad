"""Bytes as text, and text as bytes."""

from __future__ import annotations

import re

from kvcli.errors import UsageError

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?", re.IGNORECASE)


def parse_size(text: str, what: str) -> int:
    """``20GiB`` in bytes. Raises ``UsageError``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] or "").upper() not in _UNITS:
        raise UsageError(f"{what} {text} is not a size", f"{what}{' ' if what.startswith('-') else '='}20GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def format_bytes(n: float) -> str:
    """Bytes with a binary unit: ``9.1 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
