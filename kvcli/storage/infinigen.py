"""InfiniGen: units fetched one by one, predicted a layer ahead (Lee et al. 2024, OSDI, arXiv 2406.19707).

Each layer's queries are predicted from the previous layer's attention input, using a few columns of Q and K. Rotating
both by an orthogonal matrix concentrates their energy in few columns and leaves QKᵀ unchanged. The matrix comes from
the second moment of a model's queries. They are taken over a book, once per model, as in the paper (``kvcli
calibrate``), or over the text itself. Without a rotation, the columns are those with the most energy in the text's
queries and keys; for the default model they predict best (docs/results).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from kvcli.storage.base import KeptUnits, KVStorage, StorageBytes, StoredLayer
from kvcli.storage.offload.checks import at_least
from kvcli.storage.offload.host_eviction import EvictionOrder, pool_scores
from kvcli.storage.offload.layer import Selection, footprint, keep_on_device, offload

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

QUERIES = "infinigen.queries"
SQUARES = "infinigen.squares"
_LAST = 32  # a chunk's last queries, which score the units of a pool


@dataclass(frozen=True, kw_only=True)
class InfiniGen(KVStorage):
    """Keeps all units in host memory and attends to those with the largest predicted logits.

    Args:
        partial: share of query and key columns that the prediction uses.
        alpha: fetch a unit if its predicted logit is less than this below the largest one.
        cap: maximum share of units to fetch.
        skew: source of the rotation: ``file`` uses queries over another text (``kvcli calibrate``), ``text`` the text's
            own queries, ``none`` no rotation; ``auto`` is ``file`` if a calibration exists, else ``none``.
        dense: first layers, which stay dense on the device.
        least: a layer with at most this many units stays dense on the device.
        pool: maximum units per KV head of a layer in host memory, with ``full``; without it, all.
        victims: which unit leaves a full pool: the least often fetched (``counter``), the least recently fetched
            (``lru``) or the oldest (``fifo``). The newer half of the pool is always kept.
    """

    partial: float = 0.3
    alpha: float = 5.0
    cap: float = 0.2
    skew: Literal["auto", "file", "text", "none"] = "auto"
    dense: int = 2
    least: int = 64
    pool: int | None = None
    victims: EvictionOrder = "counter"

    name: ClassVar[str] = "infinigen"
    offloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, partial=0, alpha=0, cap=0, dense=0, least=0)
        if self.pool is not None:
            at_least(self, pool=1)

    @property
    def calibrated(self) -> Literal["never", "may", "must"]:
        """See :class:`kvcli.storage.base.KVStorage`."""
        return {"file": "must", "auto": "may"}.get(self.skew, "never")  # type: ignore[return-value]

    @property
    def affects_prefill(self) -> bool:
        """With a calibration file nothing is gathered during prefill."""
        return self.skew != "file" or self.limit is not None

    @property
    def limit(self) -> int | None:
        """See :class:`kvcli.storage.base.KVStorage`."""
        return self.pool

    def pool_scores(self, scores: Tensor, q: Tensor, k: Tensor, pos: Tensor, scale: float) -> Tensor:
        """Score a unit by whether the chunk's last queries would fetch it; see :class:`KVStorage`."""
        import torch

        (kv_heads, n, dim), last = k.shape, min(_LAST, q.shape[1])
        fetched = torch.zeros(kv_heads, n + 1, dtype=torch.bool, device=k.device)
        if self.victims != "fifo" and n > last:
            rotation = torch.eye(dim, dtype=k.dtype, device=k.device).expand(kv_heads, -1, -1)
            index = PartialKeys(k[:, : n - last], rotation, self.alpha, self._max_units(n - last))
            ids, lengths = index.select(q[:, -last:], scale)
            assert lengths is not None
            used = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            fetched.scatter_(1, ids.masked_fill(~used, n), True)
        return pool_scores(self.victims, scores, fetched[:, :n], pos)

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Count partial keys, and the capped number of units of this layer and the next."""
        if self._stays_on_device(layer, units):
            return super().size(spec, layer, units)
        columns = self._column_count(spec.head_dim)
        index = columns * (units + spec.head_dim)
        return footprint(spec, units, index=index, staged=self._max_units(units), exact=0, predicted=True)

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        """Sum the second moment of queries, float32 ``[H, D, D]``, or its diagonal ``[H, D]``."""
        del start
        if layer < self.dense or self.skew == "file":
            return
        q = q.float()
        name, new = (QUERIES, q.transpose(1, 2) @ q) if self.skew == "text" else (SQUARES, q.square().sum(1))
        state[name] = state[name] + new if name in state else new

    def observed_nbytes(self, spec: ModelSpec, layer: int, tokens: int) -> int:
        """Return the bytes of the second moment, or of its diagonal."""
        del tokens
        if layer < self.dense or self.skew == "file":
            return 0
        return 4 * spec.heads * spec.head_dim ** (2 if self.skew == "text" else 1)

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Offload the units; the highest-energy columns of rotated keys become the index."""
        if kept.window is not None or self._stays_on_device(kept.layer, kept.k.shape[1]):
            return keep_on_device(kept)
        n = kept.k.shape[1]

        def index(keys: Tensor) -> PartialKeys:
            keys = keys[:, :, 0]
            rotation = self._rotation(kept.state, kept.calibration, keys)
            return PartialKeys(
                (keys.float() @ rotation).to(keys.dtype), rotation.to(keys.dtype), self.alpha, self._max_units(n)
            )

        return offload(kept, index, block=1, predicted=True)

    def _rotation(self, state: dict[str, Tensor], calibration: Tensor | None, keys: Tensor) -> Tensor:
        """Return the highest-energy columns of an orthogonal matrix: float32 ``[H_kv, D, columns]``."""
        import torch

        kv_heads, _, dim = keys.shape
        moment = state.get(QUERIES) if self.skew == "text" else None if self.skew == "none" else calibration
        if moment is None:
            squares = state.get(SQUARES, torch.ones(kv_heads, dim, device=keys.device))
            gram_matrices = torch.diag_embed(squares.view(kv_heads, -1, dim).sum(1))
            rotation = torch.eye(dim, device=keys.device).expand(kv_heads, -1, -1)
        else:
            gram_matrices = moment.view(kv_heads, -1, dim, dim).sum(1)
            rotation = skew(gram_matrices)
        energy = (rotation * (gram_matrices @ rotation)).sum(1).clamp(min=0) * (keys.float() @ rotation).square().sum(1)
        best = energy.topk(self._column_count(dim), dim=-1).indices
        return rotation.gather(2, best.unsqueeze(1).expand(-1, dim, -1))

    def _column_count(self, dim: int) -> int:
        return min(dim, max(1, math.ceil(self.partial * dim)))

    def _max_units(self, units: int) -> int:
        return min(units, max(1, math.ceil(self.cap * units)))

    def _stays_on_device(self, layer: int, units: int) -> bool:
        return layer < self.dense or units <= self.least


def skew(gram_matrices: Tensor) -> Tensor:
    """Compute the right singular vectors of queries from their second moment ``[H_kv, D, D]``, in ascending order."""
    import torch

    rotation: Tensor = torch.linalg.eigh(gram_matrices.double()).eigenvectors
    return rotation.float()


@dataclass(frozen=True)
class PartialKeys:
    """A few columns of rotated keys.

    Attributes:
        keys: ``[H_kv, n, columns]``.
        rotation: ``[H_kv, D, columns]``, applied to queries.
        alpha: as for :class:`InfiniGen`.
        max_blocks: maximum number of units to fetch.
    """

    keys: Tensor
    rotation: Tensor
    alpha: float
    max_blocks: int

    @property
    def nbytes(self) -> int:
        """Bytes of partial keys and rotation."""
        return self.keys.nbytes + self.rotation.nbytes

    def select(self, q: Tensor, scale: float) -> Selection:
        """Select units per head, by their margin to each query's largest logit; see
        :class:`kvcli.storage.offload.layer.Index`."""
        import torch

        from kvcli_kernels.attention import scaled

        kv_heads, n, _ = self.keys.shape
        rows = q.reshape(kv_heads, -1, q.shape[2]) @ self.rotation
        margin = torch.full((kv_heads, n), float("-inf"), device=q.device)
        for part in torch.split(rows, 64, dim=1):
            logits = scaled((part @ self.keys.transpose(1, 2)).float(), scale)
            margin = torch.maximum(margin, (logits - logits.amax(-1, keepdim=True)).amax(1))
        lengths = (margin >= -self.alpha).sum(1).clamp(max=self.max_blocks)
        ids = margin.topk(self.max_blocks, dim=-1).indices
        unused = torch.arange(self.max_blocks, device=q.device) >= lengths[:, None]
        return Selection(ids.masked_fill(unused, n).sort(dim=-1).values, lengths)
