"""The compiled loops of :mod:`kvcli_kernels.team`.

Threads share cells in memory, each in a cache line of its own. They hold the parts that nobody has taken, the parts
that are done, and whether the step is over. They also hold how often the leading thread waited long, how many parts
others took, and the task.
"""

# ruff: noqa: ARG001 (numba gives an intrinsic arguments that it need not use)

import os

import numpy as np
from numba import types
from numba.extending import intrinsic

from kvcli_kernels.attention.one_token import attend, join
from kvcli_kernels.compiler import bits, floats, nearest, njit
from kvcli_kernels.linear.dot import dot4, dot8, round_inputs
from kvcli_kernels.merge.terms import merge_terms
from kvcli_kernels.small_operations import TASK, WIDTH, carry_out

PRODUCT, ATTENTION, MERGE = range(3)
"""Kinds of tasks, their second word: :func:`kvcli_kernels.linear.packed.linear`, :mod:`.attention.one_token`,
:mod:`.merge.terms`."""

_LEFT, _DONE, _OVER, _WAITED, _TAKEN, _TASK = 0, 8, 16, 24, 32, 40
_SPINS = 20_000  # looks at a cell before the processor is offered to others: some 20 µs


def begin():
    """New cells."""
    return np.zeros(64, np.int64)


def end(cells):
    """Send away those who follow."""
    cells[_OVER] = 1


def taken(cells):
    """How many parts the threads took that follow."""
    return int(cells[_TAKEN])


def waited(cells):
    """How often the leading thread looked ``_SPINS`` times for the end of parts that others had taken."""
    return int(cells[_WAITED])


@intrinsic
def _load(context, cells, at):
    def make(context, builder, signature, args):
        cell = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        return builder.load_atomic(cell, "acquire", 8)

    return types.int64(cells, types.int64), make


@intrinsic
def _store(context, cells, at, value):
    def make(context, builder, signature, args):
        cell = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        builder.store_atomic(args[2], cell, "release", 8)
        return context.get_dummy_value()

    return types.none(cells, types.int64, types.int64), make


@intrinsic
def _add(context, cells, at, value):
    """Add to a cell, and return what it was before."""

    def make(context, builder, signature, args):
        cell = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        return builder.atomic_rmw("add", cell, args[2], "acq_rel")

    return types.int64(cells, types.int64, types.int64), make


if os.name == "posix":
    _yield = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit(cache=True, nogil=True)
    def _yield():
        return 0


@njit(nogil=True, error_model="numpy", inline="always")
def _work(cells, task, leads):
    """Take parts of the task as the thread that leads, until it is done; as another one, of all tasks of the step."""
    if leads:
        for i in range(task.size):
            cells[_TASK + i] = task[i]
        _store(cells, _DONE, 0)
        _store(cells, _LEFT, task[0])
    spins = 0
    while True:
        if _load(cells, _LEFT) > 0:
            part = _add(cells, _LEFT, -1) - 1
            if part >= 0:
                if not leads:
                    _add(cells, _TAKEN, 1)
                if cells[_TASK + 1] == ATTENTION:
                    attend(cells[_TASK:], part)
                elif cells[_TASK + 1] == MERGE:
                    merge_terms(cells[_TASK:])
                else:
                    _multiply(cells[_TASK:], part)
                _add(cells, _DONE, 1)
                spins = 0
                continue
        if leads and _load(cells, _DONE) == task[0]:
            if task[1] == ATTENTION:
                join(task)
            return
        if not leads and _load(cells, _OVER):
            return
        spins += 1
        if spins > _SPINS:
            spins = 0
            _yield()
            if leads:
                cells[_WAITED] += 1


@njit(nogil=True, error_model="numpy", inline="always")
def _multiply(task, part):
    """Do a part of a product with a packed weight (:func:`kvcli_kernels.linear.packed.linear`)."""
    parts, narrow, width, groups, blocks, m, rows = task[0], task[2], task[3], task[4], task[5], task[6], task[7]
    start, stop = part * groups // parts, (part + 1) * groups // parts
    codes, sums = np.empty((m, blocks * 32), np.int8), np.empty((m, blocks), np.int32)
    scale, found = np.empty((m, blocks), np.float32), np.empty(16, np.float32)
    for i in range(m):
        row = task[8] + i * blocks * 32 * (2 if narrow else 4)
        round_inputs(row, narrow, blocks, codes[i].ctypes.data, scale[i].ctypes.data, sums[i].ctypes.data)
    y, rounded = floats(task[10], m * rows), bits(task[10], m * rows)
    for g in range(start, stop):
        weight = task[9] + g * blocks * 64 * (1 + width)
        for i in range(m):
            given = codes[i].ctypes.data, scale[i].ctypes.data, sums[i].ctypes.data, found.ctypes.data
            if width == 4:
                dot4(weight, blocks, *given)
            else:
                dot8(weight, blocks, *given)
            for n in range(min(16, rows - g * 16)):
                if narrow:
                    rounded[i * rows + g * 16 + n] = nearest(found[n])
                else:
                    y[i * rows + g * 16 + n] = found[n]


_FIRST = np.array([TASK])
_NONE = np.array([[TASK, 0]])


@njit(cache=True, nogil=True, error_model="numpy")
def _run(cells, program, leads):
    a, b, c = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for i in range(len(program)):
        if program[i, 0] == TASK:
            _work(cells, program[i, 1:], leads)
        else:
            carry_out(program[i], a, b, c)


def lead(cells, task):
    """Do a task, with those who follow."""
    _run(cells, np.concatenate((_FIRST, task))[None], True)


def run(cells, program):
    """Carry out instructions of :mod:`kvcli_kernels.small_operations` ``[n, WORDS]`` in order, tasks among them."""
    _run(cells, program, True)


def follow(cells):
    """Take parts of tasks until :func:`end`."""
    _run(cells, _NONE, False)


run(begin(), np.zeros((0, 4), np.int64))  # compiled here: two threads that need it at once would wait for each other
