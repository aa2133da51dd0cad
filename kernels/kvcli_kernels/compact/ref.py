"""Compaction: gather each head's selected units to the front of its buffers."""

from typing import NamedTuple

from torch import Tensor


class Units(NamedTuple):
    """Units of all heads: ``k`` and ``v [H_kv, u, D]``, ``pos`` int32 and ``scores`` float32 ``[H_kv, u]``."""

    k: Tensor
    v: Tensor
    pos: Tensor
    scores: Tensor


def compact(index: Tensor, units: Units, out: Units) -> None:
    """Copy units ``index`` of each head to slots ``0..b-1`` of ``out``.

    Args:
        index: int64 ``[H_kv, b]``.
        units: the source; heads need not be adjacent in memory. Must not overlap ``out``.
        out: the target, with at least ``b`` slots; its keys and values may be on another device.
    """
    b = index.shape[1]
    _move(units.k, index, out.k)
    _move(units.v, index, out.v)
    out.pos[:, :b] = units.pos.gather(1, index)
    out.scores[:, :b] = units.scores.gather(1, index)


def _move(x: Tensor, index: Tensor, out: Tensor) -> None:
    """Copy rows, which is faster on CPUs than copying numbers."""
    for source, mine, target in zip(x, index, out, strict=True):
        target[: len(mine)] = source.index_select(0, mine)
