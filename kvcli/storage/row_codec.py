"""Units in codes during prefill: one row of bytes per key and per value, encoded once.

A row's codes depend on its own numbers alone, so evictions do not affect it. Keys are encoded before RoPE, because
evictions change positions; a block of keys is rotated each time queries attend to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

BLOCK = 2048
"""Units of a KV head decoded at a time."""

_NORM = 2  # bytes of a float16
_NUMBERS = 5  # peak float32 numbers per number of a block: looked up, scaled, rotated back, RoPE, and its parts


@dataclass(frozen=True)
class RowCodec:
    """The codec of :mod:`kvcli.storage.turbo` per row: codes, followed by the row's factor as a float16."""

    bits: int

    def width(self, dim: int) -> int:
        """Return the bytes of a row of ``dim`` numbers."""
        return dim * self.bits // 8 + _NORM

    def encode(self, x: Tensor) -> Tensor:
        """Encode ``[H, n, D]`` as uint8 ``[H, n, width]``.

        Raises:
            ValueError: rows do not fill whole bytes, or a norm exceeds float16.
        """
        import torch

        from kvcli_kernels.quantize import encode, turn

        packed = encode(turn(x), self.bits)
        return torch.cat([packed.codes, packed.scale.view(torch.uint8)], dim=2)

    def decode_rotated(self, rows: Tensor) -> Tensor:
        """Decode rows in the rotated basis: float32 ``[H, n, D]``."""
        import torch

        from kvcli_kernels.quantize import Packed, book, look_up

        codes, scale = rows[..., :-_NORM], rows[..., -_NORM:].contiguous().view(torch.float16)
        dim = codes.shape[2] * 8 // self.bits
        return look_up(Packed(codes, scale, None, self.bits, (1, dim), book(self.bits, rows.device))).mul_(scale)

    def decode(self, rows: Tensor) -> Tensor:
        """Decode rows: float32 ``[H, n, D]``."""
        x = self.decode_rotated(rows)
        return x @ basis(x)


def basis(x: Tensor) -> Tensor:
    """Return the rotation of rows ``[…, D]``: orthogonal float32 ``[D, D]``."""
    from kvcli_kernels.quantize import hadamard

    return hadamard(x.shape[-1], x.device)


def blocks(units: int) -> list[tuple[int, int]]:
    """List ``start, stop`` of each block of ``units`` slots."""
    return [(start, min(start + BLOCK, units)) for start in range(0, units, BLOCK)]


def transient_nbytes(spec: ModelSpec, width: int, units: int, chunk: int) -> int:
    """Return the temporary bytes of one coded layer: all rows once more, and one decoded block.

    Args:
        spec: the model.
        width: bytes of a row.
        units: kept units per KV head.
        chunk: tokens of a chunk.
    """
    rows = spec.kv_heads * 2 * width * (units + chunk)
    unpacked = spec.kv_heads * min(units, BLOCK) * spec.head_dim * 4 * _NUMBERS
    terms = 3 * spec.heads * chunk * (spec.head_dim * 4 + 4)  # of the block, of earlier blocks, and merged
    return rows + unpacked + terms
