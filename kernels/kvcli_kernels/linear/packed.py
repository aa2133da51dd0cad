"""A linear layer for CPUs on a weight of 4 or 8 bits.

What llama.cpp does: inputs are rounded to 8 bits, 32 at a time, so that products are sums of small integers
(:mod:`kvcli_kernels.linear.dot`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvcli_kernels import recording, team
from kvcli_kernels.linear.dot import BLOCK
from kvcli_kernels.vectors import LANES

_PRODUCT = 0  # the kind of the task (:mod:`kvcli_kernels.team_loop`)
_HEAD = 64  # bytes of a block before its codes
_SAMPLE = 8  # groups that tell whether 4 bits are enough
_NEAR = 1 / 128  # of the largest of 32 numbers, which bfloat16 has rounded by up to 1/256


class PackedWeight(NamedTuple):
    """A matrix ``[N, K]`` in blocks of 16 rows and 32 columns. In a row of a block, a number is a code times a step.

    A block begins with 64 bytes. With 4 bits a number these are float16 ``[2, 16]``: each row's step and its least
    number, which is added. Codes are from 0 to 15; a byte has that of column ``c`` in its lower half and that of
    column ``c + 16`` in the other. With 8 bits they are float32 ``[16]``, each row's step; codes have 128 added. Codes
    follow four columns at a time: ``[columns / 4, 16, 4]``.
    """

    blocks: Tensor
    """uint8 ``[N / 16, K / 32, 64 + 64 · bits]``; the last rows may be padding."""

    rows: int
    """N."""

    @property
    def bits(self) -> int:
        return self.blocks.shape[2] // 64 - 1

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def dequantize(self) -> Tensor:
        """The matrix, float32 ``[N, K]``."""
        groups, blocks, _ = self.blocks.shape
        head, codes = self.blocks[..., :_HEAD].contiguous(), self.blocks[..., _HEAD:]
        if self.bits == 8:
            step, least = head.view(torch.float32), None
            numbers = codes.float() - 128
        else:
            step, least = head.view(torch.float16).float().chunk(2, -1)
            numbers = torch.cat([codes & 15, codes >> 4], -1).float()
        numbers = numbers.view(groups, blocks, -1, LANES, 4) * step[:, :, None, :, None]
        if least is not None:
            numbers += least[:, :, None, :, None]
        return numbers.permute(0, 3, 1, 2, 4).reshape(groups * LANES, blocks * BLOCK)[: self.rows]

    def stands_for(self, weight: Tensor) -> bool:
        """Whether this is a matrix ``[N, K]`` packed; compares some groups of rows."""
        groups, blocks, size = self.blocks.shape
        if weight.shape != (self.rows, blocks * BLOCK) or groups != -(-self.rows // LANES) or size not in (320, 576):
            return False
        some = range(0, groups, max(1, groups // _SAMPLE))
        parts = [weight[g * LANES : (g + 1) * LANES].float() for g in some]
        found = PackedWeight(self.blocks[list(some)], len(some) * LANES).dequantize().view(len(parts), LANES, -1)
        return all(bool(_close(part, one[: len(part)]).all()) for part, one in zip(parts, found, strict=True))

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :func:`linear`."""
        return linear(x, self, bias)


def pack(weight: Tensor) -> PackedWeight | None:
    """Quantise a matrix ``[N, K]``: to 4 bits if it had 4 bits, otherwise to 8.

    Returns:
        ``None`` unless K is a multiple of 32. A number is off by at most 1/128 of the largest of its 32.
    """
    n, k = weight.shape
    if k % BLOCK or not n * k:
        return None
    groups = -(-n // LANES)
    sample = torch.cat([_groups(weight, g, g + 1) for g in range(0, groups, max(1, groups // _SAMPLE))])
    for bits in (4, 8):
        if bits == 4 and _pack4(sample) is None:
            continue
        out = torch.empty(groups, k // BLOCK, _HEAD + 64 * bits, dtype=torch.uint8)
        step = max(1, (1 << 20) // (k * LANES))
        for start in range(0, groups, step):  # a copy in float32 of some rows at a time
            part = _groups(weight, start, min(start + step, groups))
            packed = _pack4(part) if bits == 4 else _pack8(part)
            if packed is None:
                break
            out[start : start + len(part)] = packed
        else:
            return PackedWeight(out, n)
    raise AssertionError("8 bits always do")


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in the dtype of ``x`` ``[…, K]``, with ``x`` rounded to 8 bits in blocks of 32.

    Rows do not depend on each other. A row with a number that is not finite gives NaN.
    """
    groups, blocks, _ = weight.blocks.shape
    narrow = x.dtype == torch.bfloat16 and bias is None
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16 if narrow else torch.float32).contiguous()
    y = torch.empty(len(rows), weight.rows, dtype=rows.dtype)
    size = weight.nbytes
    words = team.parts(size, groups), _PRODUCT, narrow, weight.bits, groups, blocks, len(rows), weight.rows
    recording.run(team.task(words, (rows, weight.blocks, y), size), (rows, weight.blocks), (y,))
    if bias is not None:
        y += bias
    return y.to(x.dtype).view(*x.shape[:-1], weight.rows)


def _groups(weight: Tensor, start: int, stop: int) -> Tensor:
    """Some groups of rows as float32 ``[groups, 16, blocks, 32]``, padded with zeros."""
    part = weight[start * LANES : stop * LANES].float()
    if missing := (stop - start) * LANES - len(part):
        part = torch.cat([part, part.new_zeros(missing, part.shape[1])])
    return part.view(stop - start, LANES, -1, BLOCK)


def _close(numbers: Tensor, found: Tensor) -> Tensor:
    """Whether numbers ``[…, 32 · n]`` are as near to others as their rounding to bfloat16 explains, per block of 32."""
    numbers, found = numbers.reshape(-1, BLOCK), found.reshape(-1, BLOCK)
    return (found - numbers).abs().amax(1) <= numbers.abs().amax(1) * _NEAR


def _pack8(part: Tensor) -> Tensor:
    largest = part.abs().amax(-1) / 127
    codes = (part / largest.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round_() + 128
    return _arranged(largest.transpose(1, 2), codes.to(torch.uint8))


def _pack4(part: Tensor) -> Tensor | None:
    """Find the step of each block: its range is a whole number of steps, up to 15."""
    shape, part = part.shape, part.reshape(-1, BLOCK)
    least, most = part.aminmax(dim=1)
    step, codes = torch.zeros_like(least), torch.zeros_like(part)
    left = torch.arange(len(part))
    for count in range(15, 0, -1):
        numbers = part[left]
        steps = (most[left] - least[left]) / count
        found = ((numbers - least[left][:, None]) / steps.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
        # of the numbers given the codes, the nearest line: rounded numbers do not tell the step exactly
        middle, mean = found.mean(1, keepdim=True), numbers.mean(1, keepdim=True)
        spread = (found - middle).square().sum(1)
        slope = ((found - middle) * (numbers - mean)).sum(1) / spread.clamp_min(1e-9)
        start = (mean - middle * slope[:, None]).squeeze(1)
        slope, start = slope.half().float(), start.half().float()
        good = _close(numbers, torch.addcmul(start[:, None], found, slope[:, None]))
        done = left[good]
        step[done], least[done], codes[done] = slope[good], start[good], found[good]
        left = left[~good]
        if not len(left):
            head = torch.stack([step, least]).view(2, *shape[:3]).permute(1, 3, 0, 2).half()
            return _arranged(head.flatten(2), codes.view(shape).to(torch.uint8))
    return None


def _arranged(head: Tensor, codes: Tensor) -> Tensor:
    """Blocks of bytes from their heads ``[groups, blocks, …]`` and codes ``[groups, 16, blocks, 32]``."""
    groups, _, blocks, _ = codes.shape
    codes = codes.view(groups, LANES, blocks, BLOCK // 4, 4).permute(0, 2, 3, 1, 4)
    if head.dtype == torch.float16:
        low, high = codes.chunk(2, 2)
        codes = low | high << 4
    return torch.cat([head.contiguous().view(torch.uint8), codes.reshape(groups, blocks, -1)], -1)
