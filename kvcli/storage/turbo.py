"""TurboQuant: a rotation, then the best code for a Gaussian (Zandieh et al. 2025, arXiv 2504.19874).

Turned by a Hadamard matrix with random signs, the coordinates of any vector look drawn from one Gaussian, so one
codebook serves all of them, and nothing has to be learnt from the data. Each token stands for itself: neighbours may
come and go.
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
        bits: of a code; the norm comes on top (``16 / D`` bits per number).
        fill: units lie in codes already while the text is read, and are never coded again: the peak falls with a large
            budget. Keys are then coded before RoPE, and every look at them costs a rotation.
    """

    name: ClassVar[str] = "turbo"

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
    def rows(self) -> RowCodec | None:
        """See :attr:`kvcli.storage.base.KVStorage.rows`."""
        return RowCodec(self.bits) if self.fill else None

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """See :meth:`kvcli.storage.base.KVStorage.freeze_peak_nbytes`; rows are taken over, or copied at most."""
        return (
            spec.kv_heads * units * self.unit(spec, layer)
            if self.fill
            else super().freeze_peak_nbytes(spec, layer, units)
        )

    def rotation(self, k: Tensor) -> Tensor:
        """See :meth:`kvcli.storage.packed.PackedStorage.rotation`."""
        from kvcli_kernels.quantize import hadamard

        return hadamard(k.shape[2], k.device)

    def packed_bytes(self, units: int, dim: int) -> int:
        """Per token and head two rows of codes and two float16."""
        return 2 * units * (dim * self.bits // 8 + 2)
