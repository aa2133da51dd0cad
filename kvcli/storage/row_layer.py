"""A layer whose kept units are rows of bytes (:mod:`kvcli.storage.row_codec`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.storage.base import ResidentLayer
from kvcli.storage.row_codec import RowCodec, basis, blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class RowLayer(ResidentLayer):
    """A layer's kept units as rows of bytes, attended to during prefill and after freezing.

    Attributes:
        k, v: uint8 ``[H_kv, c, width]``, keys before RoPE.
        pos: ``[H_kv, c]`` int32, positions in the document.
        compact: whether keys are rotated to their slots; otherwise to their positions in the document.
        codec: the codec of the rows.
        rotate: the layer's RoPE, ``(x [H_kv, n, D], positions) -> [H_kv, n, D]``.
        dtype: the model's.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    compact: bool
    codec: RowCodec
    rotate: Callable[[Tensor, range | Tensor], Tensor]
    dtype: torch.dtype
    window: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.k.nbytes + (0 if self.v is self.k else self.v.nbytes)

    def keys(self, start: int, stop: int, *, rotated: bool = True) -> Tensor:
        """Decode the keys of slots ``start..stop - 1``: ``[H_kv, stop - start, D]``."""
        k = self.codec.decode(self.k[:, start:stop]).to(self.dtype)
        return self.rotate(k, range(start, stop) if self.compact else self.pos[:, start:stop].long()) if rotated else k

    def values(self, start: int, stop: int) -> Tensor:
        """Decode the values of slots ``start..stop - 1``: ``[H_kv, stop - start, D]``."""
        return self.codec.decode(self.v[:, start:stop]).to(self.dtype)

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return None if self.compact else "coded keys are rotated to their document positions by the model itself"

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        import torch

        parts = [(self.keys(*b), self.values(*b)) for b in blocks(self.k.shape[1])] or [(self.keys(0, 0),) * 2]
        k, v = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        return k, v

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See :class:`kvcli.storage.base.StoredLayer`. Values are averaged in the rotated basis; only the average is
        rotated back."""
        from kvcli_kernels import recording

        return recording.attend(q, lambda: self._attend(q, scale))

    def _attend(self, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge

        term = None
        for start, stop in blocks(self.k.shape[1]) or [(0, 0)]:
            k, v = self.keys(start, stop), self.codec.decode_rotated(self.v[:, start:stop]).to(q.dtype)
            part = attention(q, k, v, scale, stop - start)
            term = part if term is None else merge(term, part)
        assert term is not None
        o = term[0].float()
        return (o @ basis(o)).to(q.dtype), term[1]
