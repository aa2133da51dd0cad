"""The units of one layer and chunk, as policies see them (:class:`kvcli.eviction.chunk.UnitView`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from kvcli.storage.row_codec import blocks
from kvcli.storage.row_layer import RowLayer


@dataclass(frozen=True)
class DenseUnits:
    """Units in the model's dtype."""

    k: Tensor
    v: Tensor
    rotated: Tensor


@dataclass(frozen=True)
class QuantizedUnits:
    """Kept units in codes and the chunk's new units; decoded when a policy asks.

    Attributes:
        kept: the kept units.
        new_k, new_v: ``[H_kv, new, D]``.
        new_rotated: ``[H_kv, new + probe, D]``.
    """

    kept: RowLayer
    new_k: Tensor
    new_v: Tensor
    new_rotated: Tensor

    @cached_property
    def k(self) -> Tensor:
        return self._concatenate(lambda start, stop: self.kept.keys(start, stop, rotated=False), self.new_k)

    @cached_property
    def v(self) -> Tensor:
        return self._concatenate(self.kept.values, self.new_v)

    @cached_property
    def rotated(self) -> Tensor:
        return self._concatenate(self.kept.keys, self.new_rotated)

    def _concatenate(self, decode: Callable[[int, int], Tensor], new: Tensor) -> Tensor:
        c = self.kept.k.shape[1]
        out = new.new_empty(new.shape[0], c + new.shape[1], new.shape[2])
        for start, stop in blocks(c):
            out[:, start:stop] = decode(start, stop)
        out[:, c:] = new
        return out
