"""Attention of a single token for CPUs, compiled by numba: each key and value is read once for a group of query heads.

torch's flash kernel is made for many queries: with one it reaches half the memory's bandwidth.
"""

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import recording, team
from kvcli_kernels.backend import on_threads
from kvcli_kernels.compiler import njit, number
from kvcli_kernels.packed_attention.cpu import softmax

_PART = 1 << 16  # minimum numbers in keys per thread
_MANY = 16  # parts from which it does not matter that threads of a team give up their cores
_FAST = {"reassoc", "contract", "nsz"}


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel serves these tensors: one token on a CPU, float32 or bfloat16, no gradients."""
    alike = q.dtype == k.dtype == v.dtype and q.dtype in (torch.float32, torch.bfloat16)
    return q.shape[1] == 1 and alike and q.device.type == "cpu" and not torch.is_grad_enabled()


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attend with one token to all keys, or to the first ``lengths[h]`` of each KV head.

    Args:
        q: ``[H, 1, D]``.
        k, v: ``[H_kv, n, D]``.
        scale: factor on the logits.
        lengths: int64 ``[H_kv]``.

    Returns:
        ``(o [H, 1, D] in q's dtype, lse [H, 1] float32)``.
    """
    heads, _, dim = q.shape
    kv_heads, n, _ = k.shape
    rows = q.float().reshape(kv_heads, heads // kv_heads, dim).contiguous()
    if lengths is None:
        lengths = torch.full((kv_heads,), n)
    o, lse = torch.empty(kv_heads, heads // kv_heads, dim), torch.empty(kv_heads, heads // kv_heads)
    buffers = _whole(k), _whole(v)
    queries, keys, values, used, out, total = map(recording.array, (rows, *buffers, lengths, o, lse))
    logits = np.empty((kv_heads, heads // kv_heads, n), np.float32)

    def work() -> None:
        def part(start: int, stop: int) -> None:
            h = slice(start, stop)
            _attend(queries[h], keys[h], values[h], np.float32(scale), used[h], logits[h], out[h], total[h])

        parts = n * kv_heads * dim // _PART
        on_threads(part, kv_heads, parts if parts >= _MANY or not team.active() else 1)

    recording.run(work, (rows, *buffers, lengths), (o, lse))
    return o.view(heads, 1, dim).to(q.dtype), lse.view(heads, 1)


def _whole(x: Tensor) -> Tensor:
    """The buffer ``[H_kv, capacity, D]`` of which ``x`` is the beginning, or a copy: loops need rows without gaps."""
    heads, n, dim = x.shape
    rows = x.stride(0) // dim if heads > 1 else n
    end = x.storage_offset() + heads * rows * dim
    if x.stride() != (rows * dim, dim, 1) or rows < n or end * x.element_size() > x.untyped_storage().nbytes():
        return x.contiguous()
    return x.as_strided((heads, rows, dim), x.stride())


# One compilation for each type of keys. Not closures over a conversion: numba finds none of those again on disk.


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _multiply(q, k, scale, logits):
    """``logits[g, i]`` of queries ``[G, D]`` and keys ``[n, D]``, four keys at a time."""
    (group, dim), n = q.shape, logits.shape[1]
    for i in range(0, n - 3, 4):
        a, b, c, e = k[i], k[i + 1], k[i + 2], k[i + 3]
        for g in range(group):
            query = q[g]
            s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for d in range(dim):
                x = query[d]
                s0 += x * number(a[d])
                s1 += x * number(b[d])
                s2 += x * number(c[d])
                s3 += x * number(e[d])
            logits[g, i], logits[g, i + 1], logits[g, i + 2], logits[g, i + 3] = s0, s1, s2, s3
    for i in range(n - n % 4, n):
        key = k[i]
        for g in range(group):
            query, s0 = q[g], np.float32(0)
            for d in range(dim):
                s0 += query[d] * number(key[d])
            logits[g, i] = s0
    logits *= scale


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _sum_up(weights, v, out):
    """``out[g]``, the sum of values ``[n, D]`` times weights ``[G, n]``."""
    (group, dim), n = out.shape, weights.shape[1]
    out[:] = 0
    for i in range(0, n - 3, 4):
        a, b, c, e = v[i], v[i + 1], v[i + 2], v[i + 3]
        for g in range(group):
            row = out[g]
            u0, u1, u2, u3 = weights[g, i], weights[g, i + 1], weights[g, i + 2], weights[g, i + 3]
            for d in range(dim):
                row[d] += u0 * number(a[d]) + u1 * number(b[d]) + u2 * number(c[d]) + u3 * number(e[d])
    for i in range(n - n % 4, n):
        a = v[i]
        for g in range(group):
            row, u0 = out[g], weights[g, i]
            for d in range(dim):
                row[d] += u0 * number(a[d])


@njit(cache=True, nogil=True, error_model="numpy")
def _attend(q, k, v, scale, lengths, logits, out, lse):
    for h in range(q.shape[0]):
        n = lengths[h]
        if n == 0:
            out[h], lse[h] = 0, -np.inf
            continue
        weights = logits[h, :, :n]
        _multiply(q[h], k[h], scale, weights)
        softmax(logits[h : h + 1, :, :n], lse[h : h + 1])
        _sum_up(weights, v[h], out[h])
