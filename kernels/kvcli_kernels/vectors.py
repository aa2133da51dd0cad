"""Sixteen float32 at a time in compiled loops: a register with AVX-512, two with AVX2, four with SSE or NEON.

LLVM makes vectors of most loops, but not of those with several sums, whose ends it adds up one by one.
"""

# ruff: noqa: ARG001 (numba gives an intrinsic arguments that it need not use)

from collections.abc import Callable
from math import log2
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model
from numpy.polynomial.chebyshev import cheb2poly, chebinterpolate

LANES = 16

_FLOATS, _INTS, _SHORTS, _FOUR = (
    ir.VectorType(kind, lanes)
    for kind, lanes in (
        (ir.FloatType(), LANES),
        (ir.IntType(32), LANES),
        (ir.IntType(16), LANES),
        (ir.FloatType(), 4),
    )
)
_ROUNDS = 1.5 * 2**23  # added to a number, it leaves the nearest integer in the lowest bits
_root: Any = lambda x: np.exp2(x / 2)  # noqa: E731
_POWERS = [float(np.float32(c * 2**k)) for k, c in enumerate(cheb2poly(chebinterpolate(_root, 6)))]


class _Floats(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="floats")


@register_model(_Floats)
class _Register(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_floats = _Floats()


def _all(number: float, kind: ir.VectorType = _FLOATS) -> ir.Constant:
    return ir.Constant(kind, [number] * len(kind))


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _cell(context: Any, builder: Any, kind: Any, args: Any, vector: ir.VectorType) -> Any:
    array, at = args[:2]
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


@intrinsic
def load(_context, x, at):
    """Numbers of an array from its element ``at`` on: float32, or bfloat16 as its bits."""

    def make(context, builder, signature, args):
        if x.dtype == types.float32:
            return builder.load(_cell(context, builder, x, args, _FLOATS), align=4)
        bits = builder.zext(builder.load(_cell(context, builder, x, args, _SHORTS), align=2), _INTS)
        return builder.bitcast(builder.shl(bits, _all(16, _INTS)), _FLOATS)

    return _floats(x, types.int64), make


@intrinsic
def store(_context, x, at, value):
    """Write to a float32 array from its element ``at`` on."""

    def make(context, builder, signature, args):
        builder.store(args[2], _cell(context, builder, x, args, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.none(x, types.int64, _floats), make


@intrinsic
def spread(_context, number):
    """The same number in all lanes."""

    return _floats(types.float32), lambda _context, builder, _signature, args: splat(builder, args[0], _FLOATS)


def splat(builder: Any, number: Any, kind: ir.VectorType) -> Any:
    """The same number in all lanes of a vector, in LLVM code."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    return _shuffle(builder, one, one, [0] * len(kind))


@intrinsic
def add(_context, a, b):
    """Sums."""
    return _floats(_floats, _floats), lambda _context, builder, _signature, args: builder.fadd(*args)


@intrinsic
def add_product(_context, total, a, b):
    """``total + a * b``, rounded once if the processor does so."""

    def make(context, builder, signature, args):
        return builder.fadd(args[0], builder.fmul(args[1], args[2], flags=("contract",)), flags=("contract",))

    return _floats(_floats, _floats, _floats), make


@intrinsic
def larger(_context, a, b):
    """The larger ones."""
    return _floats(_floats, _floats), lambda _context, builder, _signature, args: _larger(builder, *args)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def exponential(_context, x, highest):
    """``exp(x - highest)``, at least ``2 ** -126``, if no ``x`` is above ``highest``; NaN stays NaN.

    The error is that of rounding ``(x - highest) * log2(e)`` to float32, and at most two units in the last place.
    """

    def make(context, builder, signature, args):
        power = builder.fmul(builder.fsub(*args), _all(log2(np.e)))
        lowest = _all(-126.0)
        power = builder.select(builder.fcmp_ordered("<", power, lowest), lowest, power)
        shifted = builder.fadd(power, _all(_ROUNDS))
        rest = builder.fsub(power, builder.fsub(shifted, _all(_ROUNDS)))
        y = _all(_POWERS[-1])
        for c in _POWERS[-2::-1]:
            y = builder.fadd(builder.fmul(y, rest, flags=("contract",)), _all(c), flags=("contract",))
        exponent = builder.shl(builder.bitcast(shifted, _INTS), _all(23, _INTS))
        return builder.fmul(y, builder.bitcast(builder.add(exponent, _all(127 << 23, _INTS)), _FLOATS))

    return _floats(_floats, _floats), make


def _over_fours(join: Callable[[Any, Any, Any], Any]) -> Any:
    """Joins each lane with those four, eight and twelve before it."""

    def make(_context, builder, _signature, args):
        x = args[0]
        for by in (8, 4):
            x = join(builder, x, _shuffle(builder, x, x, [(i + by) % LANES for i in range(LANES)]))
        return x

    return make


@intrinsic
def sums_of_fours(_context, x):
    """Sums of lanes whose numbers differ by a multiple of four."""
    return _floats(_floats), _over_fours(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def largest_of_fours(_context, x):
    """The largest of lanes whose numbers differ by a multiple of four."""
    return _floats(_floats), _over_fours(_larger)


@intrinsic
def store_sums(_context, x, at, a, b, c, d):
    """Write the sums of the lanes of four vectors next to each other."""

    def make(context, builder, signature, args):
        fours = []
        for v in args[2:]:
            eight = builder.fadd(_shuffle(builder, v, v, [*range(8)]), _shuffle(builder, v, v, [*range(8, 16)]))
            fours.append(
                builder.fadd(
                    _shuffle(builder, eight, eight, [*range(4)]), _shuffle(builder, eight, eight, [*range(4, 8)])
                )
            )
        ab, cd = (
            builder.fadd(_shuffle(builder, p, q, [0, 4, 1, 5]), _shuffle(builder, p, q, [2, 6, 3, 7]))
            for p, q in (fours[:2], fours[2:])
        )
        sums = builder.fadd(_shuffle(builder, ab, cd, [0, 1, 4, 5]), _shuffle(builder, ab, cd, [2, 3, 6, 7]))
        builder.store(sums, _cell(context, builder, x, args, _FOUR), align=4)
        return context.get_dummy_value()

    return types.none(x, types.int64, _floats, _floats, _floats, _floats), make
