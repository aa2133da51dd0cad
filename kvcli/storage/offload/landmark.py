"""An index with one vector per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.storage.offload.layer import Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Landmarks:
    """Landmark vectors; :func:`kvcli_kernels.landmarks.select_blocks` selects ``max_blocks`` of their blocks.

    Attributes:
        vectors: ``[H_kv, N, D]``.
        max_blocks: blocks per KV head.
        block_ids: int32 ``[H_kv, N]``, ascending: each vector's block, if some blocks have no vector.
    """

    vectors: Tensor
    max_blocks: int
    block_ids: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of vectors and block ids."""
        return self.vectors.nbytes + (0 if self.block_ids is None else self.block_ids.nbytes)

    def select(self, q: Tensor, scale: float) -> Selection:
        """See :class:`kvcli.storage.offload.layer.Index`."""
        from kvcli_kernels.landmarks import select_blocks

        ids = select_blocks(q, self.vectors, scale, self.max_blocks)
        return Selection(ids if self.block_ids is None else self.block_ids.gather(1, ids).long())
