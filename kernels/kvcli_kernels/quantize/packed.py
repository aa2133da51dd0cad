"""Numbers in 2, 4 or 8 bits: the format that quantising makes and that attention reads.

A byte holds ``8 / bits`` neighbouring numbers of a row, the first in its lowest bits. A row is a token, so tokens can
be gathered. A *tile* of ``tokens x numbers`` shares a scale and an offset; tiles at the ends are smaller, and nothing
is padded.
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
        tile: tokens and numbers of a token that share a scale.
        codebook: float32 ``[2 ** bits]``, or ``None`` where a code is its own value.
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
        """Bytes of codes, scales and offsets; a codebook belongs to all."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.low is None else self.low.nbytes)

    def tokens(self, start: int, stop: int) -> "Packed":
        """Some tokens in a row, without a copy; ``start`` must begin a tile."""
        first, last = start // self.tile[0], -(-stop // self.tile[0])
        low = None if self.low is None else self.low[:, first:last]
        codes = self.codes[:, start:stop]
        return Packed(codes, self.scale[:, first:last], low, self.bits, self.tile, self.codebook)


def join(parts: Sequence[Packed]) -> Packed:
    """Tokens one after the other; all parts but the last end with a whole tile."""
    first = parts[0]
    if len(parts) == 1:
        return first
    low = None if first.low is None else torch.cat([p.low for p in parts if p.low is not None], dim=1)
    codes, scale = (torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("codes", "scale"))
    return Packed(codes, scale, low, first.bits, first.tile, first.codebook)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 ``[H, n, D]`` below ``2 ** bits`` as bytes ``[H, n, D * bits / 8]``.

    Raises:
        ValueError: rows that do not fill whole bytes, or bits that there are not.
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
    """The inverse of :func:`pack`."""
    return (unmixed(packed, bits) >> shifts(packed.shape[2], bits, packed.device)) if bits < 8 else packed


def unmixed(packed: Tensor, bits: int) -> Tensor:
    """Each code in a byte of its own but still in its bits, the cheaper half of unpacking: uint8 ``[H, n, D]``."""
    per = _per_byte(bits)
    if per == 1:
        return packed
    if not packed.numel():
        return packed.new_empty(*packed.shape[:2], packed.shape[2] * per)
    kind, ones, mask = (torch.int16, 0x0101, 0xF00F) if per == 2 else (torch.int32, 0x01010101, 0xC0300C03)
    # The byte as often as it holds codes; where the last of them reaches the sign, it overflows on purpose.
    wide = packed.to(kind, memory_format=torch.contiguous_format).mul_(ones)
    return wide.bitwise_and_(mask - (1 << 8 * per)).view(torch.uint8)


def shifts(width: int, bits: int, device: torch.device | None = None) -> Tensor:
    """How far left the codes of rows of ``width`` bytes stand in :func:`unmixed`: uint8 ``[D]``."""
    return (torch.arange(_per_byte(bits), dtype=torch.uint8, device=device) * bits).repeat(width)


def _per_byte(bits: int) -> int:
    if bits not in BITS:
        raise ValueError(f"{bits} bits: there are {', '.join(map(str, BITS))}")
    return 8 // bits
