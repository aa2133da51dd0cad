"""ShadowKV: low-rank keys on the device, values in host memory (Sun et al. 2024, arXiv 2410.21465).

Keys before RoPE are strongly low-rank, and keys after RoPE are similar within a few tokens; values are neither. So keys
before RoPE are stored as one factorization, and a chunk's mean key after RoPE is its landmark. For the chunks that a
query selects, values are fetched and keys are reconstructed and rotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.storage.base import KeptUnits, KVStorage, StorageBytes, StoredLayer
from kvcli.storage.offload.checks import at_least
from kvcli.storage.offload.host_store import blocks, to_host
from kvcli.storage.offload.landmark import Landmarks
from kvcli.storage.offload.layer import Offloaded, footprint, keep_on_device
from kvcli.storage.offload.lowrank import LowRankStore, factorise

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

_LOCAL = 4  # last chunks, which stay exact


@dataclass(frozen=True, kw_only=True)
class ShadowKV(KVStorage):
    """Keeps all values in host memory and keys as a low-rank factorization; attends to the chunks that a query selects.

    Args:
        rank: rank of the factorization of all KV heads' keys, concatenated.
        chunk: units per chunk.
        chunks: chunks that each step attends to, per KV head.
        outliers: chunks per KV head that their mean key represents worst; they stay dense.
    """

    rank: int = 160
    chunk: int = 8
    chunks: int = 256
    outliers: int = 48

    name: ClassVar[str] = "shadowkv"
    offloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, rank=1, chunk=1, chunks=1, outliers=0)

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Count factors, landmarks and their ids, staging, outliers and the last chunks; values are in host memory."""
        if self._stays_on_device(units):
            return super().size(spec, layer, units)
        number_bytes = spec.unit_bytes // (2 * spec.head_dim)
        count, rank = self._chunk_count(units), min(self.rank, spec.kv_heads * spec.head_dim)
        exact = units - (count - self.outliers) * self.chunk
        landmark_count = count - self.outliers
        kept = footprint(
            spec,
            units,
            index=landmark_count * spec.head_dim,
            staged=min(self.chunks, landmark_count) * self.chunk,
            exact=exact,
        )
        factors = rank * (count * self.chunk + spec.kv_heads * spec.head_dim) * number_bytes
        return StorageBytes(kept.device + factors + 4 * spec.kv_heads * landmark_count, kept.host // 2, kept.shared)

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Factorize the keys, offload the values, and keep outliers and last chunks dense."""
        import torch

        raw, rotate = kept.raw, kept.rotate
        if kept.window is not None or self._stays_on_device(kept.k.shape[1]) or raw is None or rotate is None:
            return keep_on_device(kept)
        k, v = kept.k, kept.v
        kv_heads, n, dim = k.shape
        count, landmark_count = self._chunk_count(n), self._chunk_count(n) - self.outliers
        end = count * self.chunk
        # [end, H_kv · D]: each row has a token's keys of all heads
        coefficients, basis = factorise(raw[:, :end].transpose(0, 1).flatten(1), min(self.rank, kv_heads * dim))

        keys = blocks(k, 0, count, self.chunk).float()
        means = keys.mean(2)  # [H_kv, count, D]
        similarity = torch.cosine_similarity(keys, means.unsqueeze(2), dim=-1).amin(2)
        order = similarity.argsort(dim=1, stable=True)
        outlier_ids, block_ids = (
            ids.sort(dim=1).values for ids in (order[:, : self.outliers], order[:, self.outliers :])
        )
        vectors = means.to(k.dtype).gather(1, block_ids.unsqueeze(-1).expand(-1, -1, dim))

        slots = (outlier_ids.unsqueeze(-1) * self.chunk + torch.arange(self.chunk, device=k.device)).flatten(1)
        slots = torch.cat([slots, torch.arange(end, n, device=k.device).expand(kv_heads, -1)], dim=1)
        exact_k, exact_v = (_take(x, slots.to(x.device)).to(k.device) for x in (k, v))
        original_positions = not isinstance(kept.rope_positions, range)
        positions = int(kept.pos.max()) + 1 if original_positions else n
        store = LowRankStore(
            coefficients,
            basis.view(-1, kv_heads, dim).transpose(0, 1).contiguous(),
            to_host(v, k.device),
            kept.pos if original_positions else None,
            rotate,
            (slots, exact_k),
            self.chunk,
            count,
            None if kept.angles is None else kept.angles(positions),
        )
        index = Landmarks(vectors, min(self.chunks, landmark_count), block_ids.int())
        return Offloaded(store, index, exact_k, exact_v, kept.pos)

    def _chunk_count(self, units: int) -> int:
        """Return the number of selectable chunks, outliers included."""
        return units // self.chunk - _LOCAL

    def _stays_on_device(self, units: int) -> bool:
        return units <= (self.chunks + self.outliers + _LOCAL) * self.chunk


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """Gather units ``slots [H_kv, e]`` of ``x [H_kv, n, D]``."""
    return x.gather(1, slots.unsqueeze(-1).expand(-1, -1, x.shape[2]))
