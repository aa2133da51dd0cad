"""Uniform quantization in tiles, and its inverse, in float32."""

import torch
from torch import Tensor

from kvcli_kernels.quantize.packed import Packed, pack, unpack


def quantize(x: Tensor, bits: int, tile: tuple[int, int]) -> Packed:
    """Round to the nearest of ``2 ** bits`` steps between a tile's minimum and maximum.

    Offsets are rounded down to float16 and scales up, so that the steps cover the whole tile. The error is at most half
    a step, also for tiles of equal numbers. (KIVI, Liu et al. 2024, rounds to nearest.)

    Args:
        x: ``[H, n, D]``.
        bits: 2, 4 or 8.
        tile: tokens and numbers per token that share scale and offset.

    Raises:
        ValueError: rows do not fill whole bytes, or numbers beyond float16.
    """
    levels = 2**bits - 1
    x = x.float()
    least, greatest = _extremes(x, tile)
    low = _down(least)
    scale = -_down((low.float() - greatest) / levels)
    if not bool(low.isfinite().all() & scale.isfinite().all()):
        raise ValueError("a number is infinite or beyond 65,504")
    step, offset = (spread(t.float(), x, tile) for t in (scale, low))
    codes = ((x - offset) / step.masked_fill(step == 0, 1)).round_().clamp_(0, levels)
    return Packed(pack(codes.to(torch.uint8), bits), scale, low, bits, tile)


def dequantize(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the numbers ``[H, n, D]``."""
    codes = unpack(packed.codes, packed.bits)
    values = codes.float() if packed.codebook is None else packed.codebook[codes.long()]
    values *= spread(packed.scale.float(), values, packed.tile)
    if packed.low is not None:
        values += spread(packed.low.float(), values, packed.tile)
    return values.to(dtype)


def spread(t: Tensor, x: Tensor, tile: tuple[int, int]) -> Tensor:
    """Expand one number per tile ``[H, a, b]`` to ``x [H, n, D]``; broadcasts if a tile is a whole row."""
    rows, columns = tile
    if rows > 1:
        t = t.repeat_interleave(rows, dim=1)[:, : x.shape[1]]
    if 1 < columns < x.shape[2]:
        t = t.repeat_interleave(columns, dim=2)[:, :, : x.shape[2]]
    return t


def _extremes(x: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of each tile; short tiles are padded with their last token or number."""
    heads, n, dim = x.shape
    rows, columns = tile[0], min(tile[1], dim)
    high, wide = -(-n // rows), -(-dim // columns)
    if high * rows > n:
        x = torch.cat([x, x[:, -1:].expand(-1, high * rows - n, -1)], dim=1)
    if wide * columns > dim:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, wide * columns - dim)], dim=2)
    tiles = x.reshape(heads, high, rows, wide, columns)
    return tiles.amin((2, 4)), tiles.amax((2, 4))


def _down(x: Tensor) -> Tensor:
    """Round down to float16."""
    near = x.half()
    return torch.where(near.float() <= x, near, (x - x.abs() * 2**-10 - 2**-24).half())
