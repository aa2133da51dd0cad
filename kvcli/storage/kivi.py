"""KIVI: keys quantized per channel, values per token (Liu et al. 2024, arXiv 2402.02750).

A few key channels are large in every token; a scale per channel keeps them from coarsening the others. Here units are
packed once, after the last eviction, so there is no residual window, and no group loses members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.storage.packed import PackedStorage

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli_kernels.quantize import Packed

_GROUPS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Kivi(PackedStorage):
    """Stores 2, 4 or 8 bits per number, keys in groups of tokens per channel, values in groups of channels per token.

    Args:
        bits: bits of a code; scales add ``32 / group`` bits per number.
        group: numbers that share a scale and an offset.
    """

    name: ClassVar[str] = "kivi"

    bits: int = 4
    group: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise UsageError(f"kivi: bits must be 2, 4 or 8, got {self.bits}", "kivi(bits=4)")
        if self.group not in _GROUPS:
            raise UsageError(f"kivi: group must be one of {', '.join(map(str, _GROUPS))}, got {self.group}", "group=32")

    def pack(self, k: Tensor, v: Tensor) -> tuple[Packed, Packed]:
        """See :meth:`kvcli.storage.packed.PackedStorage.pack`."""
        from kvcli_kernels.quantize import quantize

        return quantize(k, self.bits, (self.group, 1)), quantize(v, self.bits, (1, min(self.group, v.shape[2])))

    def packed_bytes(self, units: int, dim: int) -> int:
        """See :meth:`kvcli.storage.packed.PackedStorage.packed_bytes`; the last groups may be shorter."""
        groups = -(-units // self.group) * dim + units * -(-dim // self.group)
        return 2 * (units * dim * self.bits // 8) + 4 * groups
