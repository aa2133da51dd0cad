"""Operations on small tensors, element by element, in one compiled loop: a call of torch takes longer than such a one.

An instruction is a row of int64 numbers. They are what is computed, the shape in four dimensions, and the type, address
and strides of the result and both operands. Arithmetic is in float32, and each result is rounded once, as torch does.
"""

import numpy as np
from numba import carray

from kvcli_kernels.compiler import nearest, njit, number, pointer

COPY, ADD, SUBTRACT, MULTIPLY, DIVIDE, NEGATE, SQUARE, RSQRT, TASK = range(9)
FLOAT32, BFLOAT16 = range(2)
KIND, SHAPE, RESULT, FIRST, SECOND, INDEX, WORDS = 0, 1, 5, 11, 17, 23, 25
"""Columns of an instruction. An operand has six: type, address and strides. ``INDEX`` is the address of an int64 and
the elements by which it moves the result, or zeros. After ``TASK`` follow the words of a
:class:`kvcli_kernels.team.TeamTask`."""

WIDTH = 1024
"""Numbers of a row at a time."""


@njit(nogil=True, error_model="numpy", inline="always")
def carry_out(step, a, b, c):
    """Carry out an instruction; ``a``, ``b`` and ``c`` have room for ``WIDTH`` float32."""
    kind = step[KIND]
    moved = 0
    if step[INDEX]:
        moved = carray(pointer(step[INDEX]), (1,), np.int64)[0] * step[INDEX + 1]
    for i0 in range(step[SHAPE]):
        for i1 in range(step[SHAPE + 1]):
            for i2 in range(step[SHAPE + 2]):
                for start in range(0, step[SHAPE + 3], WIDTH):
                    m = min(WIDTH, step[SHAPE + 3] - start)
                    _load(step[FIRST:SECOND], i0, i1, i2, start, a, m)
                    if ADD <= kind <= DIVIDE:
                        _load(step[SECOND:INDEX], i0, i1, i2, start, b, m)
                    if kind == COPY:
                        _store(step[RESULT:FIRST], moved, i0, i1, i2, start, a, m)
                        continue
                    if kind == ADD:
                        for j in range(m):
                            c[j] = a[j] + b[j]
                    elif kind == SUBTRACT:
                        for j in range(m):
                            c[j] = a[j] - b[j]
                    elif kind == MULTIPLY:
                        for j in range(m):
                            c[j] = a[j] * b[j]
                    elif kind == DIVIDE:
                        for j in range(m):
                            c[j] = a[j] / b[j]
                    elif kind == NEGATE:
                        for j in range(m):
                            c[j] = -a[j]
                    elif kind == SQUARE:
                        for j in range(m):
                            c[j] = a[j] * a[j]
                    else:
                        for j in range(m):
                            c[j] = np.float32(1) / np.sqrt(a[j])
                    _store(step[RESULT:FIRST], moved, i0, i1, i2, start, c, m)


@njit(cache=True, nogil=True, error_model="numpy")
def _load(operand, i0, i1, i2, start, out, m):
    stride = operand[5]
    first = i0 * operand[2] + i1 * operand[3] + i2 * operand[4] + start * stride
    if operand[0] == FLOAT32:
        x = carray(pointer(operand[1] + 4 * first), (1 << 40,), np.float32)
        if stride == 1:
            for j in range(m):
                out[j] = x[j]
        else:
            for j in range(m):
                out[j] = x[j * stride]
    else:
        bits = carray(pointer(operand[1] + 2 * first), (1 << 40,), np.uint16)
        if stride == 1:
            for j in range(m):
                out[j] = number(bits[j])
        else:
            for j in range(m):
                out[j] = number(bits[j * stride])


@njit(cache=True, nogil=True, error_model="numpy")
def _store(operand, moved, i0, i1, i2, start, values, m):
    stride = operand[5]
    first = moved + i0 * operand[2] + i1 * operand[3] + i2 * operand[4] + start * stride
    if operand[0] == FLOAT32:
        x = carray(pointer(operand[1] + 4 * first), (1 << 40,), np.float32)
        if stride == 1:
            for j in range(m):
                x[j] = values[j]
        else:
            for j in range(m):
                x[j * stride] = values[j]
    else:
        bits = carray(pointer(operand[1] + 2 * first), (1 << 40,), np.uint16)
        for j in range(m):
            bits[j * stride] = nearest(values[j])
