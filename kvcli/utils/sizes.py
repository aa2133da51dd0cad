"""Bytes and numbers of tokens as text, and text as these."""

from __future__ import annotations

import re

from kvcli.errors import UsageError

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?", re.IGNORECASE)
_TOKENS = re.compile(r"([\d_]{1,12})\s*([KM]?)", re.IGNORECASE | re.ASCII)


def parse_size(text: str, what: str) -> int:
    """``20GiB`` in bytes. Raises ``UsageError``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] or "").upper() not in _UNITS:
        raise UsageError(f"{what} {text} is not a size", f"{what}{' ' if what.startswith('-') else '='}20GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def parse_tokens(text: str | int, what: str = "--tokens") -> int:
    """``4K`` as 4,096 tokens; M is 1,024². Raises ``UsageError``, also for 0."""
    match = _TOKENS.fullmatch(str(text).strip())
    tokens = int(match[1].replace("_", "") or 0) << {"": 0, "K": 10, "M": 20}[match[2].upper()] if match else 0
    if not tokens:
        raise UsageError(f"{what} {text} is not a number of tokens", f"{what} 8192, 4K or 1M")
    return tokens


def format_bytes(n: float) -> str:
    """Bytes with a binary unit: ``9.1 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
