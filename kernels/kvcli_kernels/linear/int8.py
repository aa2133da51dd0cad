"""A linear layer for CPUs on a weight of 8 bits, compiled by numba: half the bytes of bfloat16.

Each 32 numbers of a row share a float32 scale. Codes are arranged so that the lanes of a register belong to different
blocks: sums of a block stay in their lane, and a scale is applied once per block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import recording, team
from kvcli_kernels.compiler import njit

BLOCK = 32
_LANES = 8  # a multiple of it fills registers of 256 bits


class Int8Weight(NamedTuple):
    """A matrix ``[N, K]`` as codes times scales.

    Row ``g · R + r`` and column ``b · 32 + j`` is ``codes[g, j, r · B + b] · scale[g, r, b]``, with ``B = K / 32``.
    """

    codes: Tensor
    """int8 ``[N / R, 32, R · B]``."""

    scale: Tensor
    """float32 ``[N / R, R, B]``."""

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def dequantize(self) -> Tensor:
        """The matrix, float32 ``[N, K]``."""
        groups, rows, blocks = self.scale.shape
        numbers = self.codes.float().view(groups, BLOCK, rows, blocks) * self.scale[:, None]
        return numbers.permute(0, 2, 3, 1).reshape(groups * rows, blocks * BLOCK)

    def stands_for(self, weight: Tensor) -> bool:
        """Whether this is a matrix ``[N, K]`` packed; compares some groups of rows."""
        groups, rows, blocks = self.scale.shape
        if weight.shape != (groups * rows, blocks * BLOCK) or self.codes.shape != (groups, BLOCK, rows * blocks):
            return False
        some = slice(None, None, max(1, groups // 8))
        part = weight.view(groups, rows, -1)[some].flatten(0, 1).float()
        gap = (Int8Weight(self.codes[some], self.scale[some]).dequantize() - part).abs()
        return bool((gap.view(-1, BLOCK) <= part.abs().view(-1, BLOCK).amax(1, keepdim=True) / 253).all())

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :func:`linear`."""
        return linear(x, self, bias)


def pack(weight: Tensor) -> Int8Weight | None:
    """Quantise a matrix ``[N, K]``; ``None`` unless N is a multiple of 8 and K of 32.

    A number is off by at most 1/254 of the largest of its 32.
    """
    n, k = weight.shape
    if k % BLOCK or n % _LANES or not n * k:
        return None
    blocks = k // BLOCK
    rows = next(r for r in (1, 2, 4, 8) if r * blocks % _LANES == 0)
    codes = torch.empty(n // rows, BLOCK, rows * blocks, dtype=torch.int8)
    scale = torch.empty(n // rows, rows, blocks)
    step = max(1, (1 << 22) // (k * rows))
    for start in range(0, n // rows, step):  # a copy in float32 of some rows at a time
        part = weight[start * rows : (start + step) * rows].float().view(-1, rows, blocks, BLOCK)
        largest = part.abs().amax(-1) / 127
        scale[start : start + step] = largest
        found = (part / largest.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round_().permute(0, 3, 1, 2)
        codes[start : start + step] = found.reshape(len(part), BLOCK, -1).to(torch.int8)
    return Int8Weight(codes, scale)


def linear(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in the dtype of ``x`` ``[…, K]``; sums are float32. Rows do not depend on each other."""
    groups, per, blocks = weight.scale.shape
    narrow = x.dtype == torch.bfloat16 and bias is None
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16 if narrow else torch.float32).contiguous()
    y = torch.empty(len(rows), groups * per, dtype=rows.dtype)
    size = weight.codes.nbytes
    task = team.task(team.parts(size, groups), (narrow, groups, per, blocks, len(rows)), (rows, *weight, y))
    recording.run(lambda: team.do(task, size), (rows, *weight), (y,))
    if bias is not None:
        y += bias
    return y.to(x.dtype).view(*x.shape[:-1], groups * per)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def product(tiles, codes, scale, out, start, stop):
    """Multiply rows by groups ``start`` to ``stop`` of a weight: ``out [m, (stop - start) · R]``.

    ``tiles [m, 32, R · B]`` are the rows arranged as the codes are, ``R`` times.
    """
    rows, blocks, lanes = scale.shape[1], scale.shape[2], codes.shape[2]
    sums = np.empty(lanes, np.float32)
    for g in range(start, stop):
        for m in range(len(tiles)):
            sums[:] = 0
            for j in range(0, 32, 4):
                c0, c1, c2, c3 = codes[g, j], codes[g, j + 1], codes[g, j + 2], codes[g, j + 3]
                x0, x1, x2, x3 = tiles[m, j], tiles[m, j + 1], tiles[m, j + 2], tiles[m, j + 3]
                for i in range(lanes):
                    first = np.float32(c0[i]) * x0[i] + np.float32(c1[i]) * x1[i]
                    sums[i] += first + np.float32(c2[i]) * x2[i] + np.float32(c3[i]) * x3[i]
            for r in range(rows):
                total, own = np.float32(0), sums[r * blocks : (r + 1) * blocks]
                for b in range(blocks):
                    total += own[b] * scale[g, r, b]
                out[m, (g - start) * rows + r] = total
