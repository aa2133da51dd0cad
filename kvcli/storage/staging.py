"""Memory that the layers of one tail use in turn."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from kvcli.utils.copy_stream import CopyStream

if TYPE_CHECKING:
    from torch import Tensor


class Staging:
    """Buffers as large as the largest layer wants them, shared by all of them; made when first used, never moved."""

    def __init__(self) -> None:
        self.readers = 0
        self._numbers = 0
        self._buffers: dict[str, Tensor] = {}
        self._aside: CopyStream | None = None

    def join(self, *shape: int) -> int:
        """A reader says what it will want, before anyone takes anything; returns its number among all readers."""
        self._numbers = max(self._numbers, prod(shape))
        self.readers += 1
        return self.readers - 1

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A view ``shape`` of the buffer ``name``, with whatever stands in it: zeros at first."""
        if name not in self._buffers:
            self._buffers[name] = like.new_zeros(self._numbers)
        return self._buffers[name][: prod(shape)].view(shape)

    def aside(self, like: Tensor) -> CopyStream:
        """The stream that all layers fetch ahead on."""
        self._aside = self._aside or CopyStream(like.device)
        return self._aside

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers that were used."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
