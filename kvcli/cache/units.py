"""The units that a fill's layer has at hand, as policies see them (:class:`kvcli.eviction.base.UnitView`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from kvcli.storage.row_codec import RowLayer, blocks


@dataclass(frozen=True)
class DenseUnits:
    """Units that are there as they are."""

    k: Tensor
    v: Tensor
    rotated: Tensor


@dataclass(frozen=True)
class QuantizedUnits:
    """Kept units in codes and the chunk's own behind them, unpacked where a policy asks.

    Attributes:
        held: the kept ones.
        new_k, new_v: ``[H_kv, new, D]``.
        new_rotated: ``[H_kv, new + probe, D]``.
    """

    held: RowLayer
    new_k: Tensor
    new_v: Tensor
    new_rotated: Tensor

    @cached_property
    def k(self) -> Tensor:
        return self._all(lambda start, stop: self.held.keys(start, stop, rotated=False), self.new_k)

    @cached_property
    def v(self) -> Tensor:
        return self._all(self.held.values, self.new_v)

    @cached_property
    def rotated(self) -> Tensor:
        return self._all(self.held.keys, self.new_rotated)

    def _all(self, part: Callable[[int, int], Tensor], new: Tensor) -> Tensor:
        c = self.held.k.shape[1]
        out = new.new_empty(new.shape[0], c + new.shape[1], new.shape[2])
        for start, stop in blocks(c):
            out[:, start:stop] = part(start, stop)
        out[:, c:] = new
        return out
