"""Gathering each head's chosen units to the front of their buffers."""

from typing import NamedTuple

from torch import Tensor


class Units(NamedTuple):
    """Units of all heads: ``k`` and ``v [H_kv, u, D]``, ``pos`` int32 and ``scores`` float32 ``[H_kv, u]``."""

    k: Tensor
    v: Tensor
    pos: Tensor
    scores: Tensor


def compact(index: Tensor, units: Units, out: Units) -> None:
    """Write units ``index`` of each head to slots ``0..b-1`` of ``out``.

    Args:
        index: int64 ``[H_kv, b]``.
        units: where they are; heads may lie apart in memory, and nothing of it may be part of ``out``.
        out: where they go, with room for at least ``b``; its keys and values may lie on another device.
    """
    b = index.shape[1]
    _move(units.k, index, out.k)
    _move(units.v, index, out.v)
    out.pos[:, :b] = units.pos.gather(1, index)
    out.scores[:, :b] = units.scores.gather(1, index)


def _move(x: Tensor, index: Tensor, out: Tensor) -> None:
    """Row by row, which is faster on CPUs than number by number."""
    for source, mine, target in zip(x, index, out, strict=True):
        target[: len(mine)] = source.index_select(0, mine)
