"""Rows times the packed matrix of one expert on a CPU, compiled by numba: no unpacked copy of it is written.

Packed are 8 bits with a scale for each row, or MXFP4: 32 numbers of 4 bits with a common exponent.
"""

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import recording
from kvcli_kernels.backend import on_threads
from kvcli_kernels.compiler import njit

_PART = 1 << 20  # minimum bytes of a matrix per thread


def int8(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``x @ (codes · scale).T`` in the dtype of ``x [m, K]``, with codes int8 ``[N, K]`` and float32 ``[N, 1]``."""
    return _multiply(_int8, x, (codes, scale.view(-1)), len(codes))


def int8_turned(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``x @ (codes · scale)`` in the dtype of ``x [m, K]``, with codes int8 ``[K, N]`` and float32 ``[K, 1]``."""
    return _multiply(_int8_turned, x, (codes, scale.view(-1)), codes.shape[1])


def mxfp4(x: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
    """``x @ w.T`` in the dtype of ``x [m, K]``: ``w`` in uint8 ``[N, K / 32, 16]``, with exponents ``[N, K / 32]``."""
    return _multiply(_mxfp4, x, (blocks, scales), len(blocks))


def unpack_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix ``[N, K]`` of :func:`mxfp4`."""
    rows, count, _ = blocks.shape
    out = torch.empty(rows, count * 32, dtype=torch.float32)
    given, exponents, numbers = map(recording.array, (blocks.detach(), scales.detach(), out))
    on_threads(lambda start, stop: _unpack(given, exponents, numbers, start, stop), rows, blocks.nbytes // _PART)
    return out.to(dtype)


def _multiply(product, x: Tensor, packed: tuple[Tensor, Tensor], outputs: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float().contiguous()
    packed = (packed[0].detach(), packed[1].detach())
    y, parts = torch.empty(len(rows), outputs), packed[0].nbytes // _PART
    given, codes, scale, out = map(recording.array, (rows, *packed, y))

    def work() -> None:
        on_threads(lambda start, stop: product(given, codes, scale, out, start, stop), outputs, parts)

    recording.run(work, (rows, *packed), (y,))
    return y.to(x.dtype).view(*x.shape[:-1], outputs)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _int8(x, codes, scale, out, start, stop):
    for n in range(start, stop):
        row = codes[n]
        for m in range(len(x)):
            given, total = x[m], np.float32(0)
            for k in range(row.size):
                total += np.float32(row[k]) * given[k]
            out[m, n] = total * scale[n]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _int8_turned(x, codes, scale, out, start, stop):
    inputs = len(codes)
    for m in range(len(x)):
        given, sums = x[m], out[m, start:stop]
        sums[:] = 0
        for k in range(0, inputs - 3, 4):
            a, b = codes[k, start:stop], codes[k + 1, start:stop]
            c, e = codes[k + 2, start:stop], codes[k + 3, start:stop]
            u, v = given[k] * scale[k], given[k + 1] * scale[k + 1]
            w, y = given[k + 2] * scale[k + 2], given[k + 3] * scale[k + 3]
            for n in range(sums.size):
                sums[n] += u * np.float32(a[n]) + v * np.float32(b[n]) + w * np.float32(c[n]) + y * np.float32(e[n])
        for k in range(inputs - inputs % 4, inputs):
            row, u = codes[k, start:stop], given[k] * scale[k]
            for n in range(sums.size):
                sums[n] += u * np.float32(row[n])


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _twice(code):
    """Two times a number of 4 bits, a sign and one of 0, 1, 2, 3, 4, 6, 8, 12."""
    code = np.uint32(code)  # each step is cast: numba would go on with 64 bits
    shift = np.uint32(np.uint32(code & np.uint32(7)) << np.uint32(2))
    size = np.uint32(np.uint32(np.uint32(0xC8643210) >> shift) & np.uint32(15))
    sign = np.uint32(np.uint32(code & np.uint32(8)) << np.uint32(28))
    return np.uint32(np.float32(np.int32(size)).view(np.uint32) | sign).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _mxfp4(x, blocks, scales, out, start, stop):
    count = blocks.shape[1]
    half = count * 16
    pairs = np.empty((len(x), 2, half), np.float32)
    for m in range(len(x)):
        for i in range(half):
            pairs[m, 0, i], pairs[m, 1, i] = x[m, 2 * i], x[m, 2 * i + 1]
    factors = _factors()
    even, odd, sums = np.empty(half, np.float32), np.empty(half, np.float32), np.empty(16, np.float32)
    for n in range(start, stop):
        _spread(blocks[n].reshape(half), even, odd)
        for m in range(len(x)):
            sums[:] = 0
            for b in range(count):
                factor = factors[scales[n, b]]
                one, two = even[b * 16 : b * 16 + 16], odd[b * 16 : b * 16 + 16]
                first, second = pairs[m, 0, b * 16 : b * 16 + 16], pairs[m, 1, b * 16 : b * 16 + 16]
                for i in range(16):
                    sums[i] += factor * (first[i] * one[i] + second[i] * two[i])
            out[m, n] = sums.sum()


@njit(cache=True, nogil=True, error_model="numpy")
def _unpack(blocks, scales, out, start, stop):
    half, factors = blocks.shape[1] * 16, _factors()
    even, odd = np.empty(half, np.float32), np.empty(half, np.float32)
    for n in range(start, stop):
        _spread(blocks[n].reshape(half), even, odd)
        for b in range(blocks.shape[1]):
            factor = factors[scales[n, b]]
            for i in range(b * 16, b * 16 + 16):
                out[n, 2 * i], out[n, 2 * i + 1] = factor * even[i], factor * odd[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _spread(packed, even, odd):
    """Write two times the numbers of 4 bits, those of the lower halves of bytes and those of the upper ones."""
    for i in range(packed.size):
        even[i], odd[i] = _twice(packed[i]), _twice(packed[i] >> np.uint8(4))


@njit(cache=True, nogil=True, error_model="numpy")
def _factors():
    """Half of what an exponent stands for, because numbers are doubled."""
    return (2.0 ** (np.arange(256) - 128)).astype(np.float32)
