"""The compiled loops of attention of one token: a task of :mod:`kvcli_kernels.team` in parts of 256 keys of a KV head.

Each key and value is read once for four query heads, whose logits are next to each other in memory. A part has its own
maximum; :func:`join` adds up the parts of a head. So the numbers do not depend on who did which part, nor on memory
after the last key.
"""

import numpy as np
from numba import carray

from kvcli_kernels.compiler import bits, floats, nearest, njit, number, pointer
from kvcli_kernels.vectors import (
    LANES,
    add,
    add_product,
    exponential,
    larger,
    largest_of_fours,
    load,
    spread,
    store,
    store_sums,
    sums_of_fours,
)

STRETCH = 256  # keys of a part
_BLOCK = 64  # values that stay in the first cache

_NARROW, _HEADS, _GROUP, _DIM = 2, 3, 4, 5
_KEY, _VALUE, _SCALE, _SUMS, _Q, _K, _V, _LENGTHS, _O, _LSE = 6, 8, 10, 11, 12, 13, 14, 15, 16, 17
"""Words of the task. ``_KEY`` and ``_VALUE`` are strides of heads and of rows; ``_SCALE`` has a float32's bits. The
words from ``_SUMS`` on are addresses."""


def scratch(group: int, dim: int) -> int:
    """How many float32 each part needs for its sums."""
    return -(-group // 4) * 4 * (dim + 2)


@njit(nogil=True, error_model="numpy", inline="always")
def attend(task, part):
    """Do a part: sums of values, weighted by the exponentials of logits above the part's largest."""
    group, dim, splits = task[_GROUP], task[_DIM], task[0] // task[_HEADS]
    head, first = part // splits, part % splits * STRETCH
    count = min(carray(pointer(task[_LENGTHS]), (task[_HEADS],), np.int64)[head] - first, STRETCH)
    if count <= 0:
        return
    width = -(-group // 4) * 4 * (dim + 2)
    out = floats(task[_SUMS] + 4 * part * width, width)
    scale = np.int32(task[_SCALE]).view(np.float32)
    query = head * group * dim
    key = head * task[_KEY] + first * task[_KEY + 1]
    value = head * task[_VALUE] + first * task[_VALUE + 1]
    sizes = group * dim, count * task[_KEY + 1], count * task[_VALUE + 1]
    if task[_NARROW]:
        q, k = bits(task[_Q] + 2 * query, sizes[0]), bits(task[_K] + 2 * key, sizes[1])
        v = bits(task[_V] + 2 * value, sizes[2])
        _part(q, k, v, task[_KEY + 1], task[_VALUE + 1], scale, count, dim, out)
    else:
        q, k = floats(task[_Q] + 4 * query, sizes[0]), floats(task[_K] + 4 * key, sizes[1])
        v = floats(task[_V] + 4 * value, sizes[2])
        _part(q, k, v, task[_KEY + 1], task[_VALUE + 1], scale, count, dim, out)


@njit(cache=True, nogil=True, error_model="numpy")
def _part(q, k, v, key_stride, value_stride, scale, count, dim, out):
    group, rows, whole = q.size // dim, out.size // (dim + 2), dim - dim % LANES
    queries, weights = np.empty(4 * dim, np.float32), np.empty(4 * STRETCH, np.float32)
    end = -(-4 * count // LANES) * LANES
    for first in range(0, rows, 4):
        for r in range(4):
            for d in range(dim):
                queries[r * dim + d] = number(q[(first + r) * dim + d]) * scale if first + r < group else np.float32(0)
        for i in range(count):
            at = i * key_stride
            s0, s1, s2, s3 = spread(np.float32(0)), spread(np.float32(0)), spread(np.float32(0)), spread(np.float32(0))
            for d in range(0, whole, LANES):
                x = load(k, at + d)
                s0 = add_product(s0, x, load(queries, d))
                s1 = add_product(s1, x, load(queries, d + dim))
                s2 = add_product(s2, x, load(queries, d + 2 * dim))
                s3 = add_product(s3, x, load(queries, d + 3 * dim))
            store_sums(weights, 4 * i, s0, s1, s2, s3)
            for d in range(whole, dim):
                for r in range(4):
                    weights[4 * i + r] += number(k[at + d]) * queries[d + r * dim]
        weights[4 * count : end] = -np.inf
        highest = spread(np.float32(-np.inf))
        for i in range(0, end, LANES):
            highest = larger(highest, load(weights, i))
        highest = largest_of_fours(highest)
        total = spread(np.float32(0))
        for i in range(0, end, LANES):
            x = exponential(load(weights, i), highest)
            store(weights, i, x)
            total = add(total, x)
        begin = first * dim
        out[begin : begin + 4 * dim] = 0
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            for d in range(0, whole, LANES):
                s0, s1 = load(out, begin + d), load(out, begin + d + dim)
                s2, s3 = load(out, begin + d + 2 * dim), load(out, begin + d + 3 * dim)
                for i in range(start, stop):
                    x = load(v, i * value_stride + d)
                    s0 = add_product(s0, x, spread(weights[4 * i]))
                    s1 = add_product(s1, x, spread(weights[4 * i + 1]))
                    s2 = add_product(s2, x, spread(weights[4 * i + 2]))
                    s3 = add_product(s3, x, spread(weights[4 * i + 3]))
                store(out, begin + d, s0)
                store(out, begin + d + dim, s1)
                store(out, begin + d + 2 * dim, s2)
                store(out, begin + d + 3 * dim, s3)
            for d in range(whole, dim):
                for i in range(start, stop):
                    for r in range(4):
                        out[begin + r * dim + d] += weights[4 * i + r] * number(v[i * value_stride + d])
        store(weights, 0, highest)
        for r in range(4):
            out[rows * dim + first + r] = weights[r]
        store(weights, 0, sums_of_fours(total))
        for r in range(4):
            out[rows * (dim + 1) + first + r] = weights[r]


@njit(nogil=True, error_model="numpy", inline="always")
def join(task):
    """Add up the parts of each head, when all are done."""
    heads, group, dim = task[_HEADS], task[_GROUP], task[_DIM]
    splits, rows = task[0] // heads, -(-group // 4) * 4
    lengths = carray(pointer(task[_LENGTHS]), (heads,), np.int64)
    sums = carray(pointer(task[_SUMS]), (heads, splits, rows * (dim + 2)), np.float32)
    o, rounded = floats(task[_O], heads * group * dim), bits(task[_O], heads * group * dim)
    lse = floats(task[_LSE], heads * group)
    row = np.empty(dim, np.float32)
    for h in range(heads):
        used = min(-(-lengths[h] // STRETCH), splits)
        for r in range(group):
            highest, total = np.float32(-np.inf), np.float32(0)
            for s in range(used):
                highest = max(highest, sums[h, s, rows * dim + r])
            row[:] = 0
            for s in range(used):
                part = sums[h, s]
                share = np.exp(part[rows * dim + r] - highest)
                total += share * part[rows * (dim + 1) + r]
                for d in range(dim):
                    row[d] += share * part[r * dim + d]
            at = (h * group + r) * dim
            for d in range(dim):
                x = row[d] / total if used else np.float32(0)
                if task[_NARROW]:
                    rounded[at + d] = nearest(x)
                else:
                    o[at + d] = x
            lse[h * group + r] = highest + np.log(total) if used else np.float32(-np.inf)
