"""Quantization and packing in one pass over the numbers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvcli_kernels.quantize.packed import Packed

_ROWS = 16  # tokens per program if every token has its own scale


@triton.jit
def _down(x):
    near = x.to(tl.float16)
    return tl.where(
        near.to(tl.float32) <= x, near, (x - tl.abs(x) * 0.0009765625 - 5.9604644775390625e-8).to(tl.float16)
    )


@triton.jit
def _quantize(
    p_x, p_codes, p_scale, p_low, n, dim, bytes_, row_tiles, column_tiles, stride_head, stride_token,
    BITS: tl.constexpr, PER: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, BYTES: tl.constexpr,
    BY_CHANNEL: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i_row, i_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    LEVELS: tl.constexpr = 2**BITS - 1
    # [ROWS, TILES, BYTES, PER]: tokens, tiles of a row, bytes of a tile, numbers of a byte.
    o_token = (i_row * ROWS + tl.arange(0, ROWS))[:, None, None, None]
    o_tile = tl.arange(0, TILES)[None, :, None, None]
    o_byte = tl.arange(0, BYTES)[None, None, :, None]
    o_place = tl.arange(0, PER)[None, None, None, :]
    o_number = o_tile * COLUMNS + o_byte * PER + o_place
    m_x = (o_token < n) & (o_number < dim) & (o_byte * PER < COLUMNS)
    b_x = tl.load(p_x + i_head * stride_head + o_token.to(tl.int64) * stride_token + o_number, mask=m_x).to(tl.float32)
    b_least, b_greatest = tl.where(m_x, b_x, float("inf")), tl.where(m_x, b_x, float("-inf"))
    if BY_CHANNEL:
        b_least, b_greatest = tl.min(b_least, 0, keep_dims=True), tl.max(b_greatest, 0, keep_dims=True)
        o_scale = (i_head * row_tiles + i_row) * column_tiles + o_number
        m_scale = o_number < dim
    else:
        b_least = tl.min(tl.min(b_least, 3, keep_dims=True), 2, keep_dims=True)
        b_greatest = tl.max(tl.max(b_greatest, 3, keep_dims=True), 2, keep_dims=True)
        o_scale = (i_head * row_tiles + o_token) * column_tiles + o_tile
        m_scale = (o_token < n) & (o_tile < column_tiles)
    b_low = _down(b_least)
    b_scale = -_down(tl.div_rn(b_low.to(tl.float32) - b_greatest, LEVELS * 1.0))
    tl.store(p_low + o_scale, b_low, mask=m_scale)
    tl.store(p_scale + o_scale, b_scale, mask=m_scale)
    b_step = b_scale.to(tl.float32)
    b_code = tl.div_rn(b_x - b_low.to(tl.float32), tl.where(b_step == 0, 1.0, b_step) + tl.zeros_like(b_x))
    b_code = tl.minimum(
        tl.maximum((b_code + 12582912.0) - 12582912.0, 0.0), LEVELS * 1.0
    )  # to the nearest, ties to even
    b_code = tl.where(m_x, b_code, 0.0).to(tl.int32)
    b_byte = tl.sum(b_code << (o_place * BITS), 3, keep_dims=True)
    o_out = (i_head * n + o_token) * bytes_ + o_tile * (COLUMNS // PER) + o_byte
    m_out = (o_token < n) & (o_byte * PER < COLUMNS) & (o_tile * COLUMNS + o_byte * PER < dim)
    tl.store(p_codes + o_out, b_byte.to(tl.uint8), mask=m_out)


def takes(bits: int, tile: tuple[int, int], dim: int) -> bool:
    """Whether a kernel exists: for tiles of one number and 2 ** i tokens, or of whole bytes of a token."""
    rows, columns = tile
    if rows > 1:
        return columns == 1 and rows & (rows - 1) == 0
    return min(columns, dim) % (8 // bits) == 0


def quantize(x: Tensor, bits: int, tile: tuple[int, int]) -> Packed:
    """See :func:`kvcli_kernels.quantize.ref.quantize`; tiles are ``(2 ** i, 1)``, or one token high.

    Raises:
        ValueError: as there; and other tiles.
    """
    heads, n, dim = x.shape
    per, columns, by_channel = 8 // bits, min(tile[1], dim), tile[1] == 1 and tile[0] > 1
    if dim % per:
        raise ValueError(f"rows of {dim} numbers do not fill whole bytes at {bits} bits")
    if not takes(bits, tile, dim):
        raise ValueError(f"there is no kernel for tiles of {tile[0]} x {tile[1]}")
    rows, column_tiles = -(-n // tile[0]), -(-dim // columns)
    codes = torch.empty(heads, n, dim // per, dtype=torch.uint8, device=x.device)
    scale, low = (torch.empty(heads, rows, column_tiles, dtype=torch.float16, device=x.device) for _ in range(2))
    block, width = (tile[0], dim) if by_channel else (_ROWS, columns)
    if n:
        x = x if x.stride(2) == 1 else x.contiguous()
        _quantize[(-(-n // block), heads)](
            x, codes, scale, low, n, dim, dim // per, rows, column_tiles, x.stride(0), x.stride(1),
            BITS=bits, PER=per, ROWS=block, TILES=1 if by_channel else triton.next_power_of_2(column_tiles),
            BYTES=triton.next_power_of_2(width // per), BY_CHANNEL=by_channel, COLUMNS=width,
        )  # fmt: skip
    if not bool(low.isfinite().all() & scale.isfinite().all()):
        raise ValueError("a number is infinite or beyond 65,504")
    return Packed(codes, scale, low, bits, tile)
