"""LoRC: keys and values in the subspaces of the weights that computed them (Zhang et al. 2024, arXiv 2410.03111)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.storage.base import KeptUnits, KVStorage, ResidentLayer, StorageBytes, StoredLayer
from kvcli.storage.dense import DenseLayer
from kvcli.storage.row_codec import blocks

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Lorc(KVStorage):
    """Stores keys and values as coordinates along the largest left singular vectors of their weights, per KV head.

    With ``W = U S Vᵀ`` the paper replaces ``W`` by its first ``r`` singular triples and caches ``S_r V_rᵀ x``. That is
    ``U_rᵀ k``. So here weights are unchanged, prefill is exact, and the stored units are what the paper caches. Keys
    are stored before RoPE without their bias, and expanded a block at a time. The paper gives later layers a smaller
    rank, by the condition numbers of the weights. Here ranks fall linearly, as with equal condition numbers, so that a
    plan needs no weights.

    Args:
        rank: rank in the first layer, as a share of the head's width.
        least: rank in the last layer.
    """

    name: ClassVar[str] = "lorc"
    needs_basis: ClassVar[bool] = True

    rank: float = 0.875
    least: float = 0.625

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.rank <= 1:
            raise UsageError(
                f"lorc: expected 0 < least <= rank <= 1, got least={self.least} and rank={self.rank}",
                "lorc(rank=0.875, least=0.625)",
            )

    def width(self, dim: int, layer: int, layers: int) -> int:
        """Return the rank in one of ``layers`` layers with heads of ``dim`` numbers."""
        depth = layer / max(1, layers - 1)
        return max(1, round(dim * (self.rank - depth * (self.rank - self.least))))

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Count coordinates, singular vectors and biases of keys and values."""
        if spec.sliding[layer] is not None:
            return super().size(spec, layer, units)
        dim = spec.head_dim
        width = self.width(dim, layer, spec.layers)
        number = spec.unit_bytes // (2 * dim)
        return StorageBytes(2 * spec.kv_heads * number * (units * width + dim * (width + 1)), 0)

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """Return the bytes of the rotated keys, of coordinates and of the decomposition of the weights."""
        weights = spec.kv_heads * (8 * spec.head_dim * (spec.hidden + 3 * spec.head_dim))
        return weights + self.size(spec, layer, units).device + 2 * super().freeze_peak_nbytes(spec, layer, units)

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Project keys before RoPE, and values."""
        if kept.window is not None:
            return DenseLayer(kept.k, kept.v, kept.pos, kept.window)
        assert kept.raw is not None
        assert kept.rotate is not None
        assert kept.basis is not None
        width, dtype = self.width(kept.raw.shape[2], kept.layer, kept.layers), kept.v.dtype
        k, v = (
            ((x - bias.to(dtype).unsqueeze(1)) @ basis, basis, bias.to(dtype).unsqueeze(1))
            for x, vectors, bias in ((kept.raw, *kept.basis[:2]), (kept.v, *kept.basis[2:]))
            for basis in [vectors[:, :, :width].to(dtype).contiguous()]
        )
        return LorcLayer(k, v, kept.pos, isinstance(kept.rope_positions, range), kept.rotate)


_Side = tuple["Tensor", "Tensor", "Tensor"]
"""Coordinates ``[H_kv, c, r]``, orthonormal vectors ``[H_kv, D, r]``, bias ``[H_kv, 1, D]``."""


@dataclass(frozen=True)
class LorcLayer(ResidentLayer):
    """Coordinates of keys and values.

    Attributes:
        k: of keys before RoPE.
        v: of values.
        pos: ``[H_kv, c]`` int32.
        compact: whether keys are rotated to their slots; otherwise to their positions in the document.
        rotate: the layer's RoPE.
    """

    k: _Side
    v: _Side
    pos: Tensor
    compact: bool
    rotate: Callable[[Tensor, range | Tensor], Tensor]
    window: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of coordinates, vectors and biases."""
        return sum(t.nbytes for t in (*self.k, *self.v))

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return None if self.compact else "expanded keys are rotated to their document positions by the model itself"

    def keys(self, start: int, stop: int) -> Tensor:
        """Expand and rotate the keys of slots ``start..stop - 1``: ``[H_kv, stop - start, D]``."""
        positions = range(start, stop) if self.compact else self.pos[:, start:stop].long()
        return self.rotate(_expand(self.k, start, stop), positions)

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        import torch

        units = self.pos.shape[1]
        parts = [self.keys(*b) for b in blocks(units)] or [self.keys(0, 0)]
        return torch.cat(parts, dim=1), _expand(self.v, 0, units)

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See :class:`kvcli.storage.base.StoredLayer`. Values are averaged as coordinates; only the average is
        expanded."""
        from kvcli_kernels import recording

        return recording.attend(q, lambda: self._attend(q, scale))

    def _attend(self, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import pad

        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge

        coordinates, vectors, bias = self.v
        width, missing, term = vectors.shape[2], vectors.shape[1] - vectors.shape[2], None
        for start, stop in blocks(self.pos.shape[1]) or [(0, 0)]:
            v = pad(coordinates[:, start:stop], (0, missing))
            part = attention(q, self.keys(start, stop), v, scale, stop - start)
            term = part if term is None else merge(term, part)
        assert term is not None
        by_head = term[0].view(len(bias), -1, q.shape[2])[..., :width]
        return (by_head @ vectors.transpose(1, 2) + bias).view_as(q), term[1]


def _expand(side: _Side, start: int, stop: int) -> Tensor:
    coordinates, vectors, bias = side
    return coordinates[:, start:stop] @ vectors.transpose(1, 2) + bias
