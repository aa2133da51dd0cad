"""An index of one vector per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.storage.offload.layer import Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Landmarks:
    """The ``most`` blocks that :func:`kvcli_kernels.landmarks.select_blocks` prefers.

    Attributes:
        vectors: ``[H_kv, N, D]``.
        most: blocks per KV head.
        names: int32 ``[H_kv, N]``, ascending: which block each vector stands for, where some have none.
    """

    vectors: Tensor
    most: int
    names: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The vectors, and their names."""
        return self.vectors.nbytes + (0 if self.names is None else self.names.nbytes)

    def select(self, q: Tensor, scale: float) -> Selection:
        """See :class:`kvcli.storage.offload.layer.Index`."""
        from kvcli_kernels.landmarks import select_blocks

        found = select_blocks(q, self.vectors, scale, self.most)
        return Selection(found if self.names is None else self.names.gather(1, found).long())
