"""Unpacks a 4-bit weight in the order in which bitsandbytes multiplies a few rows on CPUs with bfloat16 instructions.

Rows of the weight are in groups of 32, and a byte has two numbers of one column. Its lower bits are for row ``c`` of
the group, the others for row ``c + 16``. Compiled by numba.
"""

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import recording
from kvcli_kernels.backend import on_threads
from kvcli_kernels.compiler import njit

_PART = 1 << 20  # minimum bytes of codes per thread


def unpack(codes: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """The weight, bfloat16 ``[N, K]``.

    Args:
        codes: uint8, ``N · K / 2`` of them; ``N`` is a multiple of 32.
        scale: bfloat16 ``[K / 64, N]``.
        table: float32 ``[16]``, the numbers that codes stand for.
    """
    blocks, n = scale.shape
    out = torch.empty(n, blocks * 64, dtype=torch.bfloat16)
    packed, bits = recording.array(codes.view(n // 32, blocks * 32, 32)), recording.array(scale.contiguous())
    numbers, made = recording.array(table.float()), recording.array(out)

    def work() -> None:
        parts = max(1, codes.nbytes // _PART)
        on_threads(lambda start, stop: _unpack(packed, bits, numbers, made, start, stop), n // 32, parts)

    recording.run(work, (codes, scale), (out,))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _bfloat16(number):
    """The bits of a float32, rounded to the nearest bfloat16, ties to even."""
    bits = np.float32(number).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(cache=True, nogil=True, error_model="numpy")
def _unpack(packed, scale, table, out, start, stop):
    """Write rows ``32 · start`` to ``32 · stop`` of ``out [N, K]`` from ``packed [N / 32, K / 2, 32]``."""
    for group in range(start, stop):
        for c in range(16):
            low, high = 32 * group + c, 32 * group + c + 16
            for block in range(scale.shape[0]):
                first = np.uint32(np.uint32(scale[block, low]) << np.uint32(16)).view(np.float32)
                second = np.uint32(np.uint32(scale[block, high]) << np.uint32(16)).view(np.float32)
                for k in range(64 * block, 64 * block + 64):
                    byte = packed[group, k // 2, 2 * c + k % 2]
                    out[low, k] = _bfloat16(np.float32(table[byte & 15] * first))
                    out[high, k] = _bfloat16(np.float32(table[byte >> 4] * second))
