"""The packed format: numbers in 2, 4 or 8 bits.

A byte contains ``8 / bits`` neighbouring numbers of a row, the first in its lowest bits. A row is a token, so tokens
can be gathered. A *tile* of ``tokens x numbers`` shares a scale and an offset; the last tiles may be smaller, and
nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = (2, 4, 8)


@dataclass(frozen=True)
class Packed:
    """``x ≈ value(code) * scale + low``, where ``value`` is the code itself or its entry in a codebook.

    Attributes:
        codes: uint8 ``[H, n, D * bits / 8]``.
        scale: float16 ``[H, ceil(n / tile[0]), ceil(D / tile[1])]``.
        low: like ``scale``, or ``None`` for zero.
        bits: 2, 4 or 8.
        tile: tokens and numbers per token that share a scale.
        codebook: float32 ``[2 ** bits]``, or ``None`` if a code is its own value.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor | None
    bits: int
    tile: tuple[int, int]
    codebook: Tensor | None = None

    @property
    def dim(self) -> int:
        """``D``."""
        return int(self.codes.shape[2]) * 8 // self.bits

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets, without the shared codebook."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.low is None else self.low.nbytes)

    def tokens(self, start: int, stop: int) -> "Packed":
        """Return a range of tokens as views; ``start`` must begin a tile."""
        first, last = start // self.tile[0], -(-stop // self.tile[0])
        low = None if self.low is None else self.low[:, first:last]
        codes = self.codes[:, start:stop]
        return Packed(codes, self.scale[:, first:last], low, self.bits, self.tile, self.codebook)


def join(parts: Sequence[Packed]) -> Packed:
    """Concatenate tokens; all parts but the last must end with a whole tile."""
    first = parts[0]
    if len(parts) == 1:
        return first
    low = None if first.low is None else torch.cat([p.low for p in parts if p.low is not None], dim=1)
    codes, scale = (torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("codes", "scale"))
    return Packed(codes, scale, low, first.bits, first.tile, first.codebook)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes uint8 ``[H, n, D]`` below ``2 ** bits`` into bytes ``[H, n, D * bits / 8]``.

    Raises:
        ValueError: rows do not fill whole bytes, or an unsupported number of bits.
    """
    per = _per_byte(bits)
    if codes.shape[2] % per:
        raise ValueError(f"rows of {codes.shape[2]} numbers do not fill whole bytes at {bits} bits")
    parts = codes.reshape(*codes.shape[:2], codes.shape[2] // per, per)
    out = parts[..., 0].clone()
    for place in range(1, per):
        out |= parts[..., place] << (bits * place)
    return out


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Invert :func:`pack`."""
    return (unmixed(packed, bits) >> shifts(packed.shape[2], bits, packed.device)) if bits < 8 else packed


def unmixed(packed: Tensor, bits: int) -> Tensor:
    """Put each code in its own byte without shifting it, the cheaper half of unpacking: uint8 ``[H, n, D]``."""
    per = _per_byte(bits)
    if per == 1:
        return packed
    if not packed.numel():
        return packed.new_empty(*packed.shape[:2], packed.shape[2] * per)
    kind, ones, mask = (torch.int16, 0x0101, 0xF00F) if per == 2 else (torch.int32, 0x01010101, 0xC0300C03)
    # Repeat the byte once per code. If the last copy reaches the sign bit, the overflow is intended.
    wide = packed.to(kind, memory_format=torch.contiguous_format).mul_(ones)
    return wide.bitwise_and_(mask - (1 << 8 * per)).view(torch.uint8)


def shifts(width: int, bits: int, device: torch.device | None = None) -> Tensor:
    """Return the left shifts of :func:`unmixed`'s codes for rows of ``width`` bytes: uint8 ``[D]``."""
    return (torch.arange(_per_byte(bits), dtype=torch.uint8, device=device) * bits).repeat(width)


def _per_byte(bits: int) -> int:
    if bits not in BITS:
        raise ValueError(f"{bits} bits: there are {', '.join(map(str, BITS))}")
    return 8 // bits
