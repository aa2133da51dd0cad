"""Units in codes during prefill: one row of bytes per key and per value, encoded once.

A row's codes depend on its own numbers alone, so evictions do not affect it. Keys are encoded before RoPE, because
evictions change positions; a block of keys is rotated each time queries attend to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.storage.base import ResidentLayer

if TYPE_CHECKING:
    import torch
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


@dataclass(frozen=True)
class RowLayer(ResidentLayer):
    """A layer's kept units as rows of bytes, attended to during prefill and after freezing.

    Attributes:
        k, v: uint8 ``[H_kv, c, width]``, keys before RoPE.
        pos: ``[H_kv, c]`` int32, positions in the document.
        compact: whether keys are rotated to their slots; otherwise to their positions in the document.
        codec: the codec of the rows.
        rotate: the layer's RoPE, ``(x [H_kv, n, D], positions) -> [H_kv, n, D]``.
        dtype: the model's.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    compact: bool
    codec: RowCodec
    rotate: Callable[[Tensor, range | Tensor], Tensor]
    dtype: torch.dtype
    window: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.k.nbytes + (0 if self.v is self.k else self.v.nbytes)

    def keys(self, start: int, stop: int, *, rotated: bool = True) -> Tensor:
        """Decode the keys of slots ``start..stop - 1``: ``[H_kv, stop - start, D]``."""
        k = self.codec.decode(self.k[:, start:stop]).to(self.dtype)
        return self.rotate(k, range(start, stop) if self.compact else self.pos[:, start:stop].long()) if rotated else k

    def values(self, start: int, stop: int) -> Tensor:
        """Decode the values of slots ``start..stop - 1``: ``[H_kv, stop - start, D]``."""
        return self.codec.decode(self.v[:, start:stop]).to(self.dtype)

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return None if self.compact else "coded keys are rotated to their document positions by the model itself"

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        import torch

        parts = [(self.keys(*b), self.values(*b)) for b in blocks(self.k.shape[1])] or [(self.keys(0, 0),) * 2]
        k, v = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        return k, v

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See :class:`kvcli.storage.base.StoredLayer`. Values are averaged in the rotated basis; only the average is
        rotated back."""
        from kvcli_kernels import recording

        return recording.attend(q, lambda: self._attend(q, scale))

    def _attend(self, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge

        term = None
        for start, stop in blocks(self.k.shape[1]) or [(0, 0)]:
            k, v = self.keys(start, stop), self.codec.decode_rotated(self.v[:, start:stop]).to(q.dtype)
            part = attention(q, k, v, scale, stop - start)
            term = part if term is None else merge(term, part)
        assert term is not None
        o = term[0].float()
        return (o @ basis(o)).to(q.dtype), term[1]


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
