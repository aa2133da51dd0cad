"""Random numbers that depend on places alone: the same whatever the chunks, and after an interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def uniform(*places: Tensor | int) -> Tensor:
    """Hash up to five whole numbers, broadcast against each other, to float32 in [0, 1): multiples of 2⁻²⁴.

    Args:
        places: 0 or more, below 2³¹; at least one int64 tensor.
    """
    factors = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
    x = sum(((place + 1) * factor for place, factor in zip(places, factors, strict=False)), start=places[0] * 0)
    for _ in range(3):  # an integer finalizer; products are kept below 2^63 by masking to 31 bits first
        x = ((x & 0x7FFFFFFF) ^ ((x & 0x7FFFFFFF) >> 15)) * 0x45D9F3B
    found: Tensor = (x & 0xFFFFFF).float() / 2**24  # type: ignore[union-attr]
    return found
