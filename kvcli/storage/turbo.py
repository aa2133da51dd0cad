"""TurboQuant: a rotation, then the optimal codes for a Gaussian (Zandieh et al. 2025, arXiv 2504.19874).

A Hadamard matrix with random signs makes the coordinates of any vector look Gaussian. So one codebook serves all
vectors, and nothing is learned from data. Each token is coded alone, so evictions do not affect the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.storage.packed import PackedStorage
from kvcli.storage.row_codec import RowCodec

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec
    from kvcli_kernels.quantize import Packed


@dataclass(frozen=True, kw_only=True)
class Turbo(PackedStorage):
    """Stores 2, 4 or 8 bits per number after a rotation, and one norm for each key and each value.

    Args:
        bits: bits of a code; the norm adds ``16 / D`` bits per number.
        fill: store units in codes already during prefill, which lowers the peak of a large budget. Keys are then
            encoded before RoPE and rotated at every access.
    """

    name: ClassVar[str] = "turbo"
    keeps_latents: ClassVar[bool] = True

    bits: int = 4
    fill: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise UsageError(f"turbo: bits must be 2, 4 or 8, got {self.bits}", "turbo(bits=4)")

    def pack(self, k: Tensor, v: Tensor) -> tuple[Packed, Packed]:
        """See :meth:`kvcli.storage.packed.PackedStorage.pack`."""
        from kvcli_kernels.quantize import encode, turn

        return encode(turn(k), self.bits), encode(turn(v), self.bits)

    @property
    def row_codec(self) -> RowCodec | None:
        """See :attr:`kvcli.storage.base.KVStorage.rows`."""
        return RowCodec(self.bits) if self.fill else None

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """See :meth:`kvcli.storage.base.KVStorage.freeze_peak_nbytes`; rows are taken over, or at most copied."""
        return (
            spec.kv_heads * units * self.unit_nbytes(spec, layer)
            if self.fill
            else super().freeze_peak_nbytes(spec, layer, units)
        )

    def rotation(self, k: Tensor) -> Tensor:
        """See :meth:`kvcli.storage.packed.PackedStorage.rotation`."""
        from kvcli_kernels.quantize import hadamard

        return hadamard(k.shape[2], k.device)

    def packed_bytes(self, units: int, dim: int) -> int:
        """Return the bytes of two rows of codes and two float16 per token and head."""
        return 2 * units * (dim * self.bits // 8 + 2)
