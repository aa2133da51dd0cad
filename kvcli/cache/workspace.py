"""Room for the units of one layer and its chunk; where units lie in host memory, of two layers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kvcli.utils.copy_stream import CopyStream

Pair = tuple[Tensor, Tensor]


class Kept(Protocol):
    """A layer's kept units ``[H_kv, capacity, D]``, of which ``count`` are in use."""

    index: int
    k: Tensor
    v: Tensor
    count: int


@dataclass
class Workspace:
    """Where a layer computes.

    With units in host memory those of the layer behind it come meanwhile, on a second stream, and what a chunk adds
    goes back on it. A CPU runs the same, at once.

    Between chunks nothing is under way: whoever looks at kept units then finds all of them.

    Attributes:
        tensors: keys and values ``[H_kv, room, D]``, or those of two layers.
        aside: the second stream, where units lie in host memory.
    """

    tensors: tuple[Tensor, ...]
    aside: CopyStream | None

    def __post_init__(self) -> None:
        self._coming: dict[int, Any] = {}

    @staticmethod
    def make(heads: int, room: int, dim: int, dtype: torch.dtype, device: torch.device, *, host: bool) -> Workspace:
        """For layers of at most ``room`` units, chunk included, per head."""
        tensors = tuple(torch.empty(heads, room, dim, dtype=dtype, device=device) for _ in range(4 if host else 2))
        return Workspace(tensors, CopyStream(device) if host else None)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def release(self) -> None:
        """Give it up, until :meth:`reserve`."""
        self.tensors = tuple(tensor.new_empty(0) for tensor in self.tensors)

    def reserve(self, heads: int, room: int, dim: int) -> None:
        """At least ``room``; what stood there is lost."""
        if self.tensors[0].dim() != 3 or self.tensors[0].shape[1] < room:
            self.tensors = tuple(tensor.new_empty(heads, room, dim) for tensor in self.tensors)

    def open(self, layers: Sequence[Kept], index: int) -> Pair:
        """Keys and values with the kept units of a layer in front; those of the next one set out."""
        if self.aside is None:
            return self._load(layers[index])
        if index == 0:
            self._coming.clear()  # of a chunk that was broken off
        if index not in self._coming:
            self._fetch(self.aside, layers[index])
        self.aside.join(self._coming.pop(index))
        if index + 1 < len(layers):
            self._fetch(self.aside, layers[index + 1])
        return self._pair(index)

    def put(self, layer: Kept, pair: Pair, old: int, new: int) -> None:
        """Units ``old`` to ``new`` of keys and values at hand become the layer's."""
        for source, target in zip(pair, (layer.k, layer.v), strict=True):
            if self.aside is None:
                target[:, old:new] = source[:, old:new]
            else:
                with self.aside.run():
                    _copy(source[:, old:new], target[:, old:new])

    def settle(self) -> None:
        """Wait for all that was put."""
        if self.aside is not None:
            self.aside.wait()

    def _pair(self, index: int) -> Pair:
        at = 2 * index % len(self.tensors)
        return self.tensors[at], self.tensors[at + 1]

    def _load(self, layer: Kept) -> Pair:
        pair = self._pair(layer.index)
        for source, target in zip((layer.k, layer.v), pair, strict=True):
            _copy(source[:, : layer.count], target[:, : layer.count])
        return pair

    def _fetch(self, aside: CopyStream, layer: Kept) -> None:
        with aside.run():
            self._load(layer)
        self._coming[layer.index] = aside.mark()


def _copy(source: Tensor, target: Tensor) -> None:
    """Head by head: only what is contiguous on both sides travels between machine and card without a copy first."""
    for one, other in zip(source, target, strict=True):
        other.copy_(one, non_blocking=True)
