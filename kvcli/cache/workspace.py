"""A buffer for one layer's kept units and its chunk; double-buffered if kept units are in host memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    device: torch.device


@dataclass
class Workspace:
    """The buffer in which a layer computes.

    With units in host memory, a second stream copies the next layer's in and a chunk's new units out. A CPU runs the
    same code synchronously. Between chunks no copy is pending.

    Attributes:
        tensors: by device, keys and values of one layer, or of two; each has the numbers of the largest layer.
        copy_stream: the second stream, if units are in host memory.
    """

    tensors: dict[torch.device, tuple[Tensor, ...]]
    copy_stream: CopyStream | None

    def __post_init__(self) -> None:
        self._pending: dict[int, Any] = {}

    @staticmethod
    def make(numbers: int, dtype: torch.dtype, devices: Iterable[torch.device], *, host: bool) -> Workspace:
        """Allocate for layers with so many numbers in their keys at most, chunk included; ``host``: one device."""
        tensors = {
            on: tuple(torch.empty(numbers, dtype=dtype, device=on) for _ in range(4 if host else 2)) for on in devices
        }
        return Workspace(tensors, CopyStream(next(iter(tensors))) if host else None)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors)

    def release(self) -> None:
        """Free the buffer until :meth:`reserve`."""
        self._resize(0)

    def reserve(self, numbers: int) -> None:
        """Allocate at least so many numbers; the contents are lost."""
        if len(next(iter(self.tensors.values()))[0]) < numbers:
            self._resize(numbers)

    def _resize(self, numbers: int) -> None:
        self.tensors = {on: tuple(t.new_empty(numbers) for t in tensors) for on, tensors in self.tensors.items()}

    def view(self, layers: Sequence[Kept], index: int) -> Pair:
        """Return keys and values that begin with a layer's kept units; start the copy of the next layer's."""
        if self.copy_stream is None:
            return self._load(layers[index])
        if index == 0:
            self._pending.clear()  # copies of an interrupted chunk
        if index not in self._pending:
            self._fetch(self.copy_stream, layers[index])
        self.copy_stream.join(self._pending.pop(index))
        if index + 1 < len(layers):
            self._fetch(self.copy_stream, layers[index + 1])
        return self._pair(layers[index])

    def append(self, layer: Kept, pair: Pair, old: int, new: int) -> None:
        """Copy units ``old`` to ``new`` of the given keys and values to the layer."""
        for source, target in zip(pair, (layer.k, layer.v), strict=True):
            if self.copy_stream is None:
                target[:, old:new] = source[:, old:new]
            else:
                with self.copy_stream.run():
                    _copy(source[:, old:new], target[:, old:new])

    def wait(self) -> None:
        """Wait for all copies to the layers."""
        if self.copy_stream is not None:
            self.copy_stream.wait()

    def _pair(self, layer: Kept) -> Pair:
        """Views ``[H_kv, capacity, D]`` with the shape of a layer."""
        tensors = self.tensors[layer.device]
        first, (heads, _, dim) = 2 * layer.index % len(tensors), layer.k.shape
        capacity = len(tensors[first]) // (heads * dim)
        k, v = (t[: heads * capacity * dim].view(heads, capacity, dim) for t in tensors[first : first + 2])
        return k, v

    def _load(self, layer: Kept) -> Pair:
        pair = self._pair(layer)
        for source, target in zip((layer.k, layer.v), pair, strict=True):
            _copy(source[:, : layer.count], target[:, : layer.count])
        return pair

    def _fetch(self, copy_stream: CopyStream, layer: Kept) -> None:
        with copy_stream.run():
            self._load(layer)
        self._pending[layer.index] = copy_stream.mark()


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy head by head: a GPU copies directly only what is contiguous on both sides."""
    for source_head, target_head in zip(source, target, strict=True):
        target_head.copy_(source_head, non_blocking=True)
