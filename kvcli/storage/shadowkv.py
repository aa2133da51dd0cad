"""Low-rank keys on the device, values in host memory (Sun et al. 2024, arXiv 2410.21465).

Keys before RoPE are strongly low-rank, keys after it are alike within a few tokens, values are neither. So one
factorisation is kept of the former, the mean of the latter stands for each chunk, and values are fetched for the chunks
that a query wants, whose keys are then reconstructed and rotated to where they stood.
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

_LOCAL = 4  # last chunks that stay as they are


@dataclass(frozen=True, kw_only=True)
class ShadowKV(KVStorage):
    """Keeps all values in host memory and keys as a low-rank factorisation; attends to the chunks a query wants.

    Args:
        rank: of the factorisation of all KV heads' keys, side by side.
        chunk: units per chunk.
        chunks: chunks that each step attends to, per KV head.
        outliers: chunks per KV head that their mean key represents worst; they stay as they are.
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
        """Factors, landmarks and their names, staging, outliers and the last chunks; values are the host's."""
        if self._fits(units):
            return super().size(spec, layer, units)
        number = spec.unit_bytes // (2 * spec.head_dim)
        count, rank = self._count(units), min(self.rank, spec.kv_heads * spec.head_dim)
        exact = units - (count - self.outliers) * self.chunk
        marks = count - self.outliers
        kept = footprint(
            spec, units, index=marks * spec.head_dim, staged=min(self.chunks, marks) * self.chunk, exact=exact
        )
        factors = rank * (count * self.chunk + spec.kv_heads * spec.head_dim) * number
        return StorageBytes(kept.device + factors + 4 * spec.kv_heads * marks, kept.host // 2, kept.shared)

    def freeze(self, survivors: KeptUnits) -> StoredLayer:
        """Factors, landmarks, outliers."""
        import torch

        raw, rotate = survivors.raw, survivors.rotate
        if survivors.window is not None or self._fits(survivors.k.shape[1]) or raw is None or rotate is None:
            return keep_on_device(survivors)
        k, v = survivors.k, survivors.v
        kv_heads, n, dim = k.shape
        count, marks = self._count(n), self._count(n) - self.outliers
        end = count * self.chunk
        # [end, H_kv · D], a token's keys of all heads side by side
        coefficients, basis = factorise(raw[:, :end].transpose(0, 1).flatten(1), min(self.rank, kv_heads * dim))

        keys = blocks(k, 0, count, self.chunk).float()
        means = keys.mean(2)  # [H_kv, count, D]
        alike = torch.cosine_similarity(keys, means.unsqueeze(2), dim=-1).amin(2)
        order = alike.argsort(dim=1, stable=True)
        odd, names = (ids.sort(dim=1).values for ids in (order[:, : self.outliers], order[:, self.outliers :]))
        vectors = means.to(k.dtype).gather(1, names.unsqueeze(-1).expand(-1, -1, dim))

        slots = (odd.unsqueeze(-1) * self.chunk + torch.arange(self.chunk, device=k.device)).flatten(1)
        slots = torch.cat([slots, torch.arange(end, n, device=k.device).expand(kv_heads, -1)], dim=1)
        exact_k, exact_v = (_take(x, slots.to(x.device)).to(k.device) for x in (k, v))
        placed = not isinstance(survivors.places, range)
        positions = int(survivors.pos.max()) + 1 if placed else n
        store = LowRankStore(
            coefficients,
            basis.view(-1, kv_heads, dim).transpose(0, 1).contiguous(),
            to_host(v, k.device),
            survivors.pos if placed else None,
            rotate,
            (slots, exact_k),
            self.chunk,
            count,
            None if survivors.angles is None else survivors.angles(positions),
        )
        index = Landmarks(vectors, min(self.chunks, marks), names.int())
        return Offloaded(store, index, exact_k, exact_v, survivors.pos)

    def _count(self, units: int) -> int:
        """Chunks that can be chosen, outliers included."""
        return units // self.chunk - _LOCAL

    def _fits(self, units: int) -> bool:
        return units <= (self.chunks + self.outliers + _LOCAL) * self.chunk


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """Units ``slots [H_kv, e]`` of ``x [H_kv, n, D]``."""
    return x.gather(1, slots.unsqueeze(-1).expand(-1, -1, x.shape[2]))
