"""Products of packed weights in the vector instructions of this CPU, as LLVM code for numba.

LLVM does not form them from a loop of numba: AVX-512 VNNI and AVX2 multiply four or two pairs of bytes and add them in
one instruction. Other CPUs get plain vectors of 32-bit integers.

A block of a packed weight is 16 rows and 32 columns (:class:`kvcli_kernels.linear.packed.PackedWeight`). Functions
take addresses, because numba has no 16-bit floats.
"""

# ruff: noqa: ARG001 (numba gives an intrinsic arguments that it need not use)

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvcli_kernels.vectors import LANES, splat

BLOCK = 32

_I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_INTS, _FLOATS, _HALVES = (ir.VectorType(t, LANES) for t in (_I32, _F32, _F16))
_BYTES32, _SHORTS = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16)


def features() -> dict[str, bool]:
    """Which instructions this CPU has, by LLVM's names."""
    return dict(llvm.get_host_cpu_features())


if llvm.get_process_triple().startswith(("x86_64", "i686")) and not features().get("f16c"):
    raise ImportError("16-bit floats need the instructions F16C")


@intrinsic
def round_inputs(context, address, narrow, blocks, codes, scale, sums):
    """Round a row to 8 bits, 32 numbers at a time with a common scale.

    Args:
        address: of float32 ``[blocks · 32]``, or of bfloat16 if ``narrow``.
        codes: address of int8 ``[blocks · 32]``, written.
        scale: address of float32 ``[blocks]``, written; NaN if a number is not finite.
        sums: address of int32 ``[blocks]``, written: the sum of a block's codes.
    """

    def make(context, builder, signature, args):
        row, narrow, count, out, scales, totals = args
        with _Blocks(builder, count) as b:
            start = builder.mul(b, _I64(BLOCK))
            with builder.if_else(builder.icmp_signed("!=", narrow, _I64(0))) as (then, otherwise):
                with then:
                    bits = [
                        _load(builder, row, builder.add(start, _I64(i)), ir.VectorType(_I16, LANES), 2)
                        for i in (0, LANES)
                    ]
                    moved = [builder.shl(builder.zext(x, _INTS), _INTS([16] * LANES)) for x in bits]
                    one = [builder.bitcast(x, _FLOATS) for x in moved]
                    first = builder.block
                with otherwise:
                    two = [_load(builder, row, builder.add(start, _I64(i)), _FLOATS, 4) for i in (0, LANES)]
                    second = builder.block
            x = []
            for mine, other in zip(one, two, strict=True):
                both = builder.phi(_FLOATS)
                both.add_incoming(mine, first)
                both.add_incoming(other, second)
                x.append(both)
            sizes = [_call(builder, "llvm.fabs.v16f32", _FLOATS, v) for v in x]
            largest = _call(builder, "llvm.maxnum.v16f32", _FLOATS, *sizes)
            largest = _call(builder, "llvm.vector.reduce.fmax.v16f32", _F32, largest, fastmath=("nnan",))
            finite = [builder.fcmp_ordered("<", v, _FLOATS([float("inf")] * LANES)) for v in sizes]
            finite = builder.bitcast(builder.and_(*finite), _I16)
            whole = builder.icmp_signed("==", finite, _I16(-1))
            some = builder.and_(whole, builder.fcmp_ordered(">", largest, _F32(0)))
            factor = builder.select(some, builder.fdiv(_F32(127), largest), _F32(0))
            step = builder.select(whole, builder.fmul(largest, _F32(1 / 127)), _F32(float("nan")))
            total = _INTS([0] * LANES)
            for i, v in enumerate(x):
                v = _call(builder, "llvm.rint.v16f32", _FLOATS, builder.fmul(v, splat(builder, factor, _FLOATS)))
                v = _call(builder, "llvm.minnum.v16f32", _FLOATS, v, _FLOATS([127.0] * LANES))
                v = _call(builder, "llvm.maxnum.v16f32", _FLOATS, v, _FLOATS([-127.0] * LANES))
                whole_numbers = builder.fptosi(v, _INTS)
                total = builder.add(total, whole_numbers)
                packed = builder.trunc(whole_numbers, ir.VectorType(_I8, LANES))
                _store(builder, packed, out, builder.add(start, _I64(i * LANES)), 1)
            _store(builder, step, scales, b, 4)
            _store(builder, _call(builder, "llvm.vector.reduce.add.v16i32", _I32, total), totals, b, 4)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 6), make


def dot(bits: int, products: Any = None) -> Any:
    """The product with a weight of 4 or 8 bits a number.

    Args:
        bits: 4 or 8.
        products: :func:`vnni`, :func:`avx2` or :func:`plain`; by default what the CPU has that numba compiles for.
    """

    @intrinsic
    def multiply(context, weight, blocks, codes, scale, sums, out):
        """Multiply a row of rounded inputs by 16 rows of a weight, of which a number has ``bits`` bits.

        Args:
            weight: address of ``blocks`` blocks.
            codes: address of int8 ``[blocks · 32]``.
            scale: address of float32 ``[blocks]``.
            sums: address of int32 ``[blocks]``.
            out: address of float32 ``[16]``, written.
        """

        def make(context, builder, signature, args):
            weight, count, codes, scale, sums, out = args
            taken = products or _best(context.codegen().magic_tuple()[2])
            with _Blocks(builder, count, _FLOATS([0.0] * LANES)) as (b, result):
                start = builder.add(weight, builder.mul(b, _I64(64 + 64 * bits)))
                inputs = builder.add(codes, builder.mul(b, _I64(BLOCK)))
                total = _load(builder, sums, b, _I32, 4)
                found = taken(builder, bits, builder.add(start, _I64(64)), inputs)
                if bits == 8:  # codes are stored plus 128
                    found = builder.sub(found, splat(builder, builder.mul(total, _I32(128)), _INTS))
                found = builder.sitofp(found, _FLOATS)
                if bits == 8:
                    found = builder.fmul(found, _load(builder, start, _I64(0), _FLOATS, 4))
                else:
                    step, least = (
                        builder.fpext(_load(builder, start, _I64(i), _HALVES, 2), _FLOATS) for i in (0, LANES)
                    )
                    added = builder.fmul(least, splat(builder, builder.sitofp(total, _F32), _FLOATS))
                    found = _call(builder, "llvm.fmuladd.v16f32", _FLOATS, found, step, added)
                factor = splat(builder, _load(builder, scale, b, _F32, 4), _FLOATS)
                result.append(_call(builder, "llvm.fmuladd.v16f32", _FLOATS, found, factor, result[0]))
            _store(builder, result[0], out, _I64(0), 4)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 6), make

    return multiply


def _best(instructions: str) -> Any:
    return vnni if "+avx512vnni" in instructions else avx2 if "+avx2" in instructions else plain


dot4, dot8 = dot(4), dot(8)


def _stored(builder: ir.IRBuilder, bits: int, address: Any) -> Any:
    """The codes of a block as bytes in 32-bit lanes, one per row, with the column of their first byte."""
    half = _INTS([0x0F0F0F0F] * LANES)
    for i in range(bits):
        found = _load(builder, address, _I64(i * LANES), _INTS, 4)
        if bits == 8:
            yield found, 4 * i
        else:
            yield builder.and_(found, half), 4 * i
            yield builder.and_(builder.lshr(found, _INTS([4] * LANES)), half), 16 + 4 * i


def vnni(builder: ir.IRBuilder, bits: int, address: Any, inputs: Any) -> Any:
    """Sums of a block in AVX-512 VNNI: four products of bytes at a time are added to 32 bits."""
    sums = [_INTS([0] * LANES)] * 2
    for i, (codes, column) in enumerate(_stored(builder, bits, address)):
        x = splat(builder, _load(builder, builder.add(inputs, _I64(column)), _I64(0), _I32, 4), _INTS)
        sums[i % 2] = _call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, sums[i % 2], codes, x)
    return builder.add(*sums)


def avx2(builder: ir.IRBuilder, bits: int, address: Any, inputs: Any) -> Any:
    """Sums of a block in AVX2. Those of 4 bits times 8 fit 16 bits; codes of 8 bits are multiplied in two halves."""
    low, high = _BYTES32([15] * 32), _BYTES32([4] * 32)
    ints = ir.VectorType(_I32, 8)
    sums = [[None, None], [None, None]]  # by half of the rows, by half of the bits
    for codes, column in _stored(builder, bits, address):
        x = _load(builder, builder.add(inputs, _I64(column)), _I64(0), _I32, 4)
        x = builder.bitcast(splat(builder, x, ints), _BYTES32)
        for h in range(2):
            part = builder.shuffle_vector(codes, codes, ir.VectorType(_I32, 8)(list(range(8 * h, 8 * h + 8))))
            part = builder.bitcast(part, _BYTES32)
            parts = [part] if bits == 4 else [builder.and_(part, low), builder.lshr(part, high)]
            for n, p in enumerate(parts):
                found = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS, p, x)
                sums[h][n] = found if sums[h][n] is None else builder.add(sums[h][n], found)
    made = []
    for one in sums:
        wide = [
            _call(builder, "llvm.x86.avx2.pmadd.wd", ints, s, _SHORTS([factor] * 16))
            for s, factor in zip(one, (1, 16), strict=True)
            if s is not None
        ]
        made.append(wide[0] if bits == 4 else builder.add(*wide))
    return builder.shuffle_vector(*made, _INTS(list(range(16))))


def plain(builder: ir.IRBuilder, bits: int, address: Any, inputs: Any) -> Any:
    """Sums of a block in 32-bit integers, for any CPU."""
    total = _INTS([0] * LANES)
    for codes, column in _stored(builder, bits, address):
        for c in range(4):
            x = builder.sext(_load(builder, inputs, _I64(column + c), _I8, 1), _I32)
            part = builder.and_(builder.lshr(codes, _INTS([8 * c] * LANES)), _INTS([255] * LANES))
            total = builder.add(total, builder.mul(part, splat(builder, x, _INTS)))
    return total


class _Blocks:
    """A loop over ``count`` blocks, at least one, with a value that each turn replaces by appending the next one."""

    def __init__(self, builder: ir.IRBuilder, count: Any, value: Any = None) -> None:
        self.builder, self.count, self.value = builder, count, value

    def __enter__(self) -> Any:
        builder, before = self.builder, self.builder.block
        self.loop = builder.append_basic_block("blocks")
        builder.branch(self.loop)
        builder.position_at_end(self.loop)
        self.index = builder.phi(_I64)
        self.index.add_incoming(_I64(0), before)
        if self.value is None:
            return self.index
        self.carried = builder.phi(_FLOATS)
        self.carried.add_incoming(self.value, before)
        self.result = [self.carried]
        return self.index, self.result

    def __exit__(self, *_: object) -> None:
        builder, last = self.builder, self.builder.block
        after = builder.add(self.index, _I64(1))
        self.index.add_incoming(after, last)
        if self.value is not None:
            self.carried.add_incoming(self.result[-1], last)
            self.result[:] = self.result[-1:]
        end = builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed("<", after, self.count), self.loop, end)
        builder.position_at_end(end)


def _at(builder: ir.IRBuilder, address: Any, index: Any, kind: Any, size: int) -> Any:
    place = builder.add(address, builder.mul(index, _I64(size)))
    return builder.inttoptr(place, kind.as_pointer())


def _load(builder: ir.IRBuilder, address: Any, index: Any, kind: Any, size: int) -> Any:
    """A number or vector whose first number is ``index`` numbers of ``size`` bytes after the address."""
    return builder.load(_at(builder, address, index, kind, size), align=1)


def _store(builder: ir.IRBuilder, value: Any, address: Any, index: Any, size: int) -> None:
    builder.store(value, _at(builder, address, index, value.type, size), align=1)


def _call(builder: ir.IRBuilder, name: str, result: Any, *args: Any, fastmath: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(result, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, fastmath=fastmath)
