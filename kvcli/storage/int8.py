"""Int8: eight bits per number, one scale per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.storage.packed import PackedStorage

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli_kernels.quantize import Packed


@dataclass(frozen=True, kw_only=True)
class Int8(PackedStorage):
    """Stores a byte per number, with a scale and an offset for each key and each value."""

    name: ClassVar[str] = "int8"
    keeps_latents: ClassVar[bool] = True

    def pack(self, k: Tensor, v: Tensor) -> tuple[Packed, Packed]:
        """See :meth:`kvcli.storage.packed.PackedStorage.pack`."""
        from kvcli_kernels.quantize import quantize

        tile = (1, k.shape[2])
        return quantize(k, 8, tile), quantize(v, 8, tile)

    def packed_bytes(self, units: int, dim: int) -> int:
        """Return ``2 D`` bytes and two pairs of float16 per token and head."""
        return units * (2 * dim + 8)
