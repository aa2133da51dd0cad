"""Common parts of storages with few bits: packing and the packed layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.errors import ModelError
from kvcli.storage.base import KeptUnits, KVStorage, ResidentLayer, StorageBytes, StoredLayer
from kvcli.storage.dense import DenseLayer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvcli.types import ModelSpec
    from kvcli_kernels.quantize import Packed

_BLOCK = 4096  # units of a KV head packed at a time; a multiple of any group
_COPIES = 18  # peak float32 numbers per number of a block, measured (docs/results): the process keeps freed memory


@dataclass(frozen=True, kw_only=True)
class PackedStorage(KVStorage):
    """Packs every number once, after prefill; sliding-window layers stay dense."""

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Pack a layer. Raises ``ModelError`` for numbers beyond a float16 scale, and for rows of no whole bytes."""
        k, v = kept.k, kept.v
        if kept.window is not None:
            return DenseLayer(k, v, kept.pos, kept.window)
        try:
            return PackedLayer(*self._pack(k, v), kept.pos, k.dtype, self.rotation(k))
        except ValueError as error:
            raise ModelError(f"{self.name} cannot hold layer {kept.layer}: {error}", "--kv-bits 16") from None

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """See :meth:`kvcli.storage.base.KVStorage.size`."""
        head_bytes = (
            spec.unit_bytes * units if spec.sliding[layer] is not None else self.packed_bytes(units, spec.head_dim)
        )
        whole = spec.sliding[layer] is not None or not spec.latent
        return StorageBytes(spec.kv_heads * head_bytes // (1 if whole else 2), 0)

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """Return the bytes of the rotated keys, and of several float32 copies of one block."""
        if spec.sliding[layer] is not None:
            return super().freeze_peak_nbytes(spec, layer, units)
        block = spec.kv_heads * spec.head_dim * min(units, _BLOCK) * 4 * _COPIES
        return block + self.size(spec, layer, units).device + super().freeze_peak_nbytes(spec, layer, units)

    def _pack(self, k: Tensor, v: Tensor) -> tuple[Packed, Packed]:
        """Pack block by block; blocks are whole tiles, so the result equals packing at once."""
        from kvcli_kernels.quantize import join

        starts = range(0, k.shape[1], _BLOCK) or [0]
        if v is k and self.keeps_latents:
            once = join([self.pack(part, part)[0] for part in (k[:, s : s + _BLOCK] for s in starts)])
            return once, once
        parts = [self.pack(k[:, start : start + _BLOCK], v[:, start : start + _BLOCK]) for start in starts]
        return join([k for k, _ in parts]), join([v for _, v in parts])

    def pack(self, k: Tensor, v: Tensor) -> tuple[Packed, Packed]:
        """Pack keys and values ``[H_kv, c, D]`` in few bits."""
        raise NotImplementedError

    def packed_bytes(self, units: int, dim: int) -> int:
        """Return the bytes of one KV head's units."""
        raise NotImplementedError

    def rotation(self, k: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the orthogonal float32 ``[D, D]`` applied to rows before packing, or ``None``."""
        return None


@dataclass(frozen=True)
class PackedLayer(ResidentLayer):
    """Packed keys and values of ``[H_kv, c, D]``, and the rotation applied before packing."""

    k: Packed
    v: Packed
    pos: Tensor
    dtype: torch.dtype
    rotation: Tensor | None = None
    window: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return self.k.nbytes + (0 if self.v is self.k else self.v.nbytes)

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels.quantize import dequantize

        def unpack(packed: Packed) -> Tensor:
            x = dequantize(packed)
            return (x if self.rotation is None else x @ self.rotation).to(self.dtype)

        k = unpack(self.k)
        return k, k if self.v is self.k else unpack(self.v)

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rotate queries as the keys were, attend, and rotate outputs back; see
        :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels.packed_attention import packed_attention

        if self.rotation is None:
            return packed_attention(q, self.k, self.v, scale)
        o, lse = packed_attention((q.float() @ self.rotation.T).to(q.dtype), self.k, self.v, scale)
        return (o.float() @ self.rotation).to(q.dtype), lse
