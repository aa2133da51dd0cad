"""Staging buffers that the layers of one decode cache share."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from kvcli.utils.copy_stream import CopyStream

if TYPE_CHECKING:
    from torch import Tensor


class Staging:
    """Buffers of the largest layer's size, shared by all layers; allocated at first use, never moved."""

    def __init__(self) -> None:
        self.readers = 0
        self._size = 0
        self._buffers: dict[str, Tensor] = {}
        self._copy_stream: CopyStream | None = None

    def register(self, *shape: int) -> int:
        """Announce a reader's buffer size before the first use; return the reader's index."""
        self._size = max(self._size, prod(shape))
        self.readers += 1
        return self.readers - 1

    def buffer(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Return the buffer ``name`` as a view of ``shape``; its contents are kept, zeros at first."""
        if name not in self._buffers:
            self._buffers[name] = like.new_zeros(self._size)
        return self._buffers[name][: prod(shape)].view(shape)

    def copy_stream(self, like: Tensor) -> CopyStream:
        """Return the stream on which all layers prefetch."""
        self._copy_stream = self._copy_stream or CopyStream(like.device)
        return self._copy_stream

    @property
    def nbytes(self) -> int:
        """Bytes of all allocated buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
