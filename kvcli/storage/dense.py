"""Dense storage in the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.storage.base import KeptUnits, KVStorage, ResidentLayer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dense(KVStorage):
    """Stores keys and values unchanged in the model's dtype."""

    name: ClassVar[str] = "dense"
    keeps_latents: ClassVar[bool] = True

    def freeze(self, kept: KeptUnits) -> DenseLayer:
        """Take the tensors over without a copy."""
        return DenseLayer(kept.k, kept.v, kept.pos, kept.window)


@dataclass(frozen=True)
class DenseLayer(ResidentLayer):
    """Rotated keys and values ``[H_kv, c, D]``."""

    k: Tensor
    v: Tensor
    pos: Tensor
    window: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.k.nbytes + (0 if self.v is self.k else self.v.nbytes)

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return self.k, self.v

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels.attention import attention

        return attention(q, self.k, self.v, scale, q_start, self.window)
