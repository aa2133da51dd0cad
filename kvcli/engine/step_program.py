"""Operations of a recorded decode step as instructions of :mod:`kvcli_kernels.small_operations`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import team
from kvcli_kernels.backend import for_cpu

_MOST = 1 << 16  # numbers of a result; torch is faster with more
_TYPES = {torch.float32: 0, torch.bfloat16: 1}

_aten = torch.ops.aten
_NAMES = {
    _aten.add.Tensor: "ADD",
    _aten.sub.Tensor: "SUBTRACT",
    _aten.mul.Tensor: "MULTIPLY",
    _aten.div_.Tensor: "DIVIDE",
    _aten.neg.default: "NEGATE",
    _aten.rsqrt.default: "RSQRT",
    _aten._to_copy.default: "COPY",
    _aten.clone.default: "COPY",
}


@dataclass(frozen=True)
class Instruction:
    """One or more instructions, and the tensors whose memory they name."""

    words: list[list[int]]
    keep: Sequence[Any]


def instruction(func: Any, args: Any, kwargs: Any, results: Sequence[Tensor]) -> Instruction | None:
    """An operation that gave ``results``, or wrote to them; ``None`` if the loop cannot do it just as torch does."""
    loop = for_cpu("small_operations", "")
    if loop is None or len(results) != 1:
        return None
    if func is _aten.index_copy_.default and not kwargs:
        return _index_copy(loop, *args)
    if not _fits(result := results[0]):
        return None
    if func is _aten.cat.default:
        return _cat(loop, args, kwargs, result)
    if func is _aten.copy_.default:
        return _made(loop, loop.COPY, result, [args[1]])
    if func is _aten.pow.Tensor_Scalar and args[1] == 2:
        return _made(loop, loop.SQUARE, result, args[:1])
    if func not in _NAMES or kwargs.get("alpha", 1) != 1:
        return None
    kind = getattr(loop, _NAMES[func])
    return _made(
        loop, kind, result, args[:2] if kind in (loop.ADD, loop.SUBTRACT, loop.MULTIPLY, loop.DIVIDE) else args[:1]
    )


def of_task(task: team.TeamTask) -> Instruction | None:
    """A task of compiled loops as an instruction."""
    loop = for_cpu("small_operations", "")
    if loop is None:
        return None
    words = [loop.TASK, *task.words.tolist()]
    return Instruction([words + [0] * (loop.WORDS - len(words))], task.keep)


def compiled(instructions: Sequence[Instruction]) -> Callable[[], object]:
    """A call that carries them out."""
    program = np.array([words for one in instructions for words in one.words], np.int64)
    keep = [one.keep for one in instructions]

    def call(_kept: Any = keep) -> None:
        team.run(program)

    return call


def _fits(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.dtype in _TYPES
        and x.device.type == "cpu"
        and x.dim() <= 4
        and 0 < x.numel() <= _MOST
    )


def _made(loop: Any, kind: int, result: Tensor, operands: Sequence[Any]) -> Instruction | None:
    given = list[Tensor]()
    for x in operands:
        if isinstance(x, int | float) and not isinstance(x, bool):
            if result.dtype != torch.float32 and np.float32(x).view(np.uint32) & 0xFFFF:
                return None  # no bfloat16: whether torch rounds it first depends on the layout
            x = torch.tensor(x, dtype=torch.float32)
        elif not _fits(x) or (x.dim() == 0 and x.dtype != result.dtype and kind != loop.COPY):
            return None  # torch rounds a tensor without dimensions first
        if _overlaps(x, result):
            return None
        given.append(x)
    if kind == loop.COPY and given[0].shape != result.shape:
        given = [given[0].expand(result.shape)]
    if any(x.dtype == torch.float32 and x.dim() for x in given) and result.dtype != torch.float32 and kind != loop.COPY:
        return None
    return Instruction([_words(kind, result, given)], (result, given))


def _words(kind: int, result: Tensor, given: Sequence[Tensor], index: Sequence[int] = (0, 0)) -> list[int]:
    shape = (1,) * (4 - result.dim()) + tuple(result.shape)
    operands = [_operand(result), *(_operand(x.broadcast_to(result.shape)) for x in given)]
    words = [kind, *shape, *(word for operand in operands for word in operand)]
    return [*words, *[0] * (23 - len(words)), *index]


def _operand(x: Tensor) -> list[int]:
    strides = (0,) * (4 - x.dim()) + tuple(x.stride())
    return [_TYPES[x.dtype], x.data_ptr(), *strides]


def _overlaps(x: Tensor, result: Tensor) -> bool:
    """Whether an operand shares memory with the result, other than being the result."""
    if x.data_ptr() == result.data_ptr() and x.stride() == result.stride() and x.shape == result.shape:
        return False
    first, last = x.data_ptr(), x.data_ptr() + _extent(x)
    return first < result.data_ptr() + _extent(result) and result.data_ptr() < last


def _extent(x: Tensor) -> int:
    return (1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def _cat(loop: Any, args: Any, kwargs: Any, result: Tensor) -> Instruction | None:
    tensors, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    words, start = list[list[int]](), 0
    for x in tensors:
        if not _fits(x) or x.dtype != result.dtype or x.dim() != result.dim() or _overlaps(x, result):
            return None
        words.append(_words(loop.COPY, result.narrow(dim, start, x.shape[dim]), [x]))
        start += x.shape[dim]
    return Instruction(words, (result, list(tensors)))


def _index_copy(loop: Any, target: Tensor, dim: int, index: Tensor, source: Tensor) -> Instruction | None:
    """Write to one place of a cache, which an int64 names."""
    if index.numel() != 1 or index.dtype != torch.int64 or target.dim() > 4 or target.dtype not in _TYPES:
        return None
    if source.dtype != target.dtype or not _fits(source) or source.dim() != target.dim() or _overlaps(source, target):
        return None
    place = (index.data_ptr(), target.stride(dim))
    return Instruction([_words(loop.COPY, target.narrow(dim, 0, 1), [source], place)], (target, index, source))
