"""The compiled loop of a merge: a task of :mod:`kvcli_kernels.team` in one part."""

import numpy as np

from kvcli_kernels.compiler import bits, floats, nearest, njit, number


@njit(nogil=True, error_model="numpy", inline="always")
def merge_terms(task):
    """Merge two terms.

    The words after the kind are whether numbers are bfloat16, rows, dimension, and the addresses of both terms and of
    the result.
    """
    narrow, rows, dim = task[2], task[3], task[4]
    size = rows * dim
    o_a, lse_a, bits_a = floats(task[5], size), floats(task[6], rows), bits(task[5], size)
    o_b, lse_b, bits_b = floats(task[7], size), floats(task[8], rows), bits(task[7], size)
    o, lse, rounded = floats(task[9], size), floats(task[10], rows), bits(task[9], size)
    for r in range(rows):
        a, b = lse_a[r], lse_b[r]
        share = np.float32(1) / (np.float32(1) + np.exp(a - b))
        if share != share:
            share = np.float32(0)  # of two terms without keys
        for i in range(r * dim, r * dim + dim):
            x, y = o_a[i], o_b[i]
            if narrow:
                x, y = number(bits_a[i]), number(bits_b[i])
            mixed = x + share * (y - x)
            if share >= np.float32(0.5):
                mixed = y - (y - x) * (np.float32(1) - share)
            if narrow:
                rounded[i] = nearest(mixed)
            else:
                o[i] = mixed
        highest = max(a, b)
        lse[r] = highest if highest == -np.inf else highest + np.log1p(np.exp(min(a, b) - highest))
