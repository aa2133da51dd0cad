"""Decode attention on packed keys for CPUs, compiled by numba: codes become floats in registers, while torch must write
them to memory first.

Rows are arranged in *planes*: with ``per`` codes per byte, number ``b · per + p`` of a row is at ``[p, b]``. So
neighbouring bytes are neighbouring lanes of a register. As in :mod:`kvcli_kernels.packed_attention.fused_scales`,
queries absorb the scales of keys. They are processed in blocks of four that share unpacked codes; a single query is
processed alone. A codebook is evaluated as an odd polynomial through its points, as no register can look up sixteen
numbers at once.
"""

from collections.abc import Callable
from functools import cache, lru_cache, reduce
from math import log
from typing import Any

import numpy as np
import torch
from numpy.polynomial.chebyshev import cheb2poly, chebinterpolate
from torch import Tensor

from kvcli_kernels import recording
from kvcli_kernels.backend import on_threads
from kvcli_kernels.compiler import njit
from kvcli_kernels.merge import merge
from kvcli_kernels.quantize.packed import Packed

_PART = 1 << 18  # minimum codes of keys per thread
_STRETCH = 64  # tokens whose values are unpacked at a time; a multiple of four
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_sqrt_exp2: Any = lambda x: np.exp2(x / 2)  # noqa: E731
_LOG2E = np.float32(1 / log(2))
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = (  # 2 ** x between -1/2 and 1/2 as a polynomial, to 1e-8
    np.float32(c * 2**k) for k, c in enumerate(cheb2poly(chebinterpolate(_sqrt_exp2, 6)))
)


def serves(k: Packed, v: Packed) -> bool:
    """Whether the tiles are those of a KV storage: keys per channel or row, values per part of a row; no large
    codebook."""
    whole = k.tile[0] > 1 or k.tile[1] >= k.dim
    parts = v.tile[0] == 1 and v.dim % v.tile[1] == 0
    return whole and parts and all(p.codebook is None or p.bits < 8 for p in (k, v))


def packed_attention(q: Tensor, k: Packed, v: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.packed_attention.ref.packed_attention`."""
    (heads, m, dim), (kv_heads, n, _) = q.shape, k.codes.shape
    rows = (q.float() * scale).view(kv_heads, heads // kv_heads * m, dim)
    o, lse = torch.empty_like(rows), torch.empty(rows.shape[:2])

    def work() -> None:
        parts = on_threads(_attention(rows, k, v), n, k.codes.numel() * 8 // k.bits // _PART, step=k.tile[0])
        found = reduce(merge, parts)
        o.copy_(found[0])
        lse.copy_(found[1])

    recording.run(work, (rows,), (o, lse))
    return o.reshape(heads, m, dim).to(q.dtype), lse.view(heads, m)


def _attention(q: Tensor, k: Packed, v: Packed) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Return attention of scaled float32 queries ``[H_kv, r, D]`` over tokens ``start`` to ``stop``; ``start`` begins a
    tile."""
    (heads, rows, dim), block = q.shape, 1 if q.shape[1] == 1 else 4
    queries = q.new_zeros(heads, -(-rows // block) * block, 8 // k.bits, k.codes.shape[2])
    queries[:, :rows] = _planes(q, k.bits)
    terms = [_planes(x, k.bits) for x in _terms(k)] if k.tile[0] > 1 else [x.squeeze(2) for x in _terms(k)]
    keys = queries.numpy(), k.codes.numpy(), *map(_floats, terms), _curve(k)
    logits = _logits(k.bits, k.tile[0] if k.tile[0] > 1 else 0, len(keys[-1]), block, k.low is not None)
    codes = v.codes.unflatten(2, (-1, v.tile[1] * v.bits // 8))
    values = codes.numpy(), *map(_floats, _terms(v)), _curve(v)
    weighted = _weighted(v.bits, len(values[-1]), block, v.low is not None)

    def attend(start: int, stop: int) -> tuple[Tensor, Tensor]:
        weights = np.empty((*queries.shape[:2], stop - start), np.float32)
        out = np.empty((*queries.shape[:2], codes.shape[2], 8 // v.bits, codes.shape[3]), np.float32)
        lse = np.empty((heads, rows), np.float32)
        logits(*keys, start, weights)
        softmax(weights, lse)
        weighted(weights, *values, start, out)
        return torch.from_numpy(out)[:, :rows].mT.reshape(heads, rows, dim), torch.from_numpy(lse)

    return attend


def _planes(x: Tensor, bits: int) -> Tensor:
    """Arrange ``[…, D]`` as planes ``[…, p, b]``."""
    return x.unflatten(-1, (-1, 8 // bits)).mT


def _terms(packed: Packed) -> tuple[Tensor, Tensor]:
    """Return scale and offset; an empty offset if there is none."""
    return packed.scale, packed.scale[:0] if packed.low is None else packed.low


def _floats(x: Tensor) -> np.ndarray:
    return x.to(torch.float32, memory_format=torch.contiguous_format).numpy()


def _curve(packed: Packed) -> np.ndarray:
    """Return the polynomial of the codebook (see :func:`_through`); empty if a code is its own value."""
    return _through(packed.codebook) if packed.codebook is not None else np.empty(0, np.float32)


@lru_cache(maxsize=8)
def _through(codebook: Tensor) -> np.ndarray:
    """Return coefficients ``[size / 2]``: ``codebook[i] = Σ_j c_j x^(2j + 1)`` with ``x = i - (size - 1) / 2``.

    Raises:
        ValueError: the codebook is not symmetric.
    """
    values = codebook.double().numpy()
    if not np.array_equal(values, -values[::-1]):
        raise ValueError("a codebook that is not symmetric")
    upper = values[len(values) // 2 :]
    points = np.arange(len(upper)) + 0.5
    return np.linalg.solve(points[:, None] ** (2 * np.arange(len(upper)) + 1), upper).astype(np.float32)


# --- kernels; their parameters are compile-time constants, so that loops over a row use whole registers ---


@njit(inline="always")
def _value(byte, shift, ones, curve, terms):
    """Return a code's value before scale and offset; ``terms`` is the length of ``curve``."""
    x = np.float32((byte >> np.int32(shift)) & ones)
    if terms == 0:
        return x
    x -= np.float32(0.5) * np.float32(ones)
    square, y = x * x, curve[terms - 1]
    for j in range(1, terms):
        y = y * square + curve[terms - 1 - j]
    return y * x


@cache
def _logits(bits: int, tile: int, terms: int, block: int, offset: bool) -> Callable[..., None]:
    """Compile the product of queries ``[H, r, p, b]`` and the keys from ``start`` on: ``[H, r, n]``.

    Scale and offset are ``[H, tiles, p, b]`` for tiles of ``tile`` tokens and one channel; or ``[H, tokens]`` for tiles
    of one row (``tile`` is 0).
    """
    per, ones, channels = 8 // bits, np.int32(2**bits - 1), tile > 0

    @njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
    def kernel(q, codes, scale, low, curve, start, logits):
        heads, width, stop = codes.shape[0], codes.shape[2], start + logits.shape[2]
        tokens = tile if channels else stop
        scaled, base = np.empty((block, per, width), np.float32), np.zeros(4, np.float32)
        for h in range(heads):
            for first in range(0, q.shape[1], block):
                for t in range(start // tokens, -(-stop // tokens)):
                    for r in range(block):
                        total, query = np.float32(0), q[h, first + r]
                        for p in range(per):
                            for b in range(width):
                                x = query[p, b]
                                scaled[r, p, b] = x * scale[h, t, p, b] if channels else x
                                if offset:
                                    total += x * low[h, t, p, b] if channels else x
                        base[r] = total
                    b0, b1, b2, b3 = base[0], base[1], base[2], base[3]
                    q0, q1, q2, q3 = scaled[0], scaled[1 % block], scaled[2 % block], scaled[3 % block]
                    for i in range(max(start, t * tokens), min(stop, t * tokens + tokens)):
                        row = codes[h, i]
                        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                        for b in range(width):
                            byte = np.int32(row[b])
                            for p in range(per):
                                x = _value(byte, bits * p, ones, curve, terms)
                                s0 += q0[p, b] * x
                                if block > 1:
                                    s1 += q1[p, b] * x
                                    s2 += q2[p, b] * x
                                    s3 += q3[p, b] * x
                        z, o = np.float32(1), np.float32(1)
                        if not channels:
                            z, o = scale[h, i], low[h, i] if offset else np.float32(0)
                        i -= start
                        logits[h, first, i] = s0 * z + b0 * o
                        if block > 1:
                            logits[h, first + 1, i] = s1 * z + b1 * o
                            logits[h, first + 2, i] = s2 * z + b2 * o
                            logits[h, first + 3, i] = s3 * z + b3 * o

    return kernel


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def softmax(logits, lse):
    """Turn logits ``[H, r, n]`` into weights in place; ``lse`` ``[H, r]`` may have fewer rows."""
    for h in range(lse.shape[0]):
        for r in range(lse.shape[1]):
            row = logits[h, r]
            highest = row[0]
            for i in range(row.size):
                highest = row[i] if row[i] > highest else highest
            total = np.float32(0)
            for i in range(row.size):
                x = max((row[i] - highest) * _LOG2E, np.float32(-126))
                whole = np.floor(x + np.float32(0.5))
                x -= whole
                y = ((((((_E6 * x + _E5) * x + _E4) * x + _E3) * x + _E2) * x) + _E1) * x + _E0
                y *= np.int32((np.int32(whole) + 127) << 23).view(np.float32)
                row[i] = y
                total += y
            lse[h, r] = highest + log(total)
            for i in range(row.size):
                row[i] /= total


@cache
def _weighted(bits: int, terms: int, block: int, offset: bool) -> Callable[..., None]:
    """Compile the product of weights ``[H, r, n]`` and the values from ``start`` on: ``[H, r, g, p, b]``.

    Codes are ``[H, tokens, g, b]``, scale and offset ``[H, tokens, g]``: tiles are parts of a row.
    """
    per, ones = 8 // bits, np.int32(2**bits - 1)

    @njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
    def kernel(weights, codes, scale, low, curve, start, out):
        (heads, _, groups, span), n = codes.shape, weights.shape[2]
        dim = groups * per * span
        values = np.zeros((_STRETCH, groups, per, span), np.float32)
        rows = values.reshape(_STRETCH, dim)
        x, sums = np.zeros((4, _STRETCH), np.float32), np.empty((4, dim), np.float32)
        s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
        for h in range(heads):
            for first in range(0, weights.shape[1], block):
                sums[:] = 0
                for begin in range(0, n, _STRETCH):
                    count = min(n - begin, _STRETCH)
                    for i in range(count):
                        for g in range(groups):
                            at = start + begin + i
                            z, o = scale[h, at, g], low[h, at, g] if offset else np.float32(0)
                            row = codes[h, at, g]
                            for p in range(per):
                                plane = values[i, g, p]
                                for b in range(row.size):
                                    plane[b] = _value(np.int32(row[b]), bits * p, ones, curve, terms) * z + o
                    for r in range(block):
                        x[r, :count] = weights[h, first + r, begin : begin + count]
                        x[r, count:] = 0
                    for i in range(0, count, 4):
                        u0, v0, w0, y0 = x[0, i], x[0, i + 1], x[0, i + 2], x[0, i + 3]
                        u1, v1, w1, y1 = x[1, i], x[1, i + 1], x[1, i + 2], x[1, i + 3]
                        u2, v2, w2, y2 = x[2, i], x[2, i + 1], x[2, i + 2], x[2, i + 3]
                        u3, v3, w3, y3 = x[3, i], x[3, i + 1], x[3, i + 2], x[3, i + 3]
                        a, b, c, e = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
                        for d in range(dim):
                            u, v, w, y = a[d], b[d], c[d], e[d]
                            s0[d] += u0 * u + v0 * v + w0 * w + y0 * y
                            if block > 1:
                                s1[d] += u1 * u + v1 * v + w1 * w + y1 * y
                                s2[d] += u2 * u + v2 * v + w2 * w + y2 * y
                                s3[d] += u3 * u + v3 * v + w3 * w + y3 * y
                for r in range(block):
                    out[h, first + r] = sums[r].reshape(groups, per, span)

    return kernel
