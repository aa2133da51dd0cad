"""MiniCache (Liu et al. 2024, arXiv 2405.14366): neighbouring deep layers store one direction per token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.errors import ModelError, UsageError
from kvcli.share import maps
from kvcli.share.base import LayerSharing
from kvcli.storage.base import KeptUnits, KVStorage, ResidentLayer, StorageBytes, StoredLayer
from kvcli.storage.row_codec import BLOCK, blocks
from kvcli.types import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

_LENGTHS = 2 * 2 * 4  # bytes per unit: float32 lengths of keys and of values in both layers
_SLOT = 4  # bytes of an int32 slot
_PARALLEL = 1e-4  # least sine of an angle that is divided by


@dataclass(frozen=True, kw_only=True)
class MiniCache(LayerSharing):
    """Pairs of neighbouring deep layers store one direction per key and value, and each layer's lengths.

    MiniCache (Liu et al. 2024, arXiv 2405.14366): from half of the depth on, the unit vectors of two neighbours are
    interpolated on the sphere. Units whose directions differ most stay as they are in both layers.

    Differences: document units are merged once, after prefill; question and answer stay exact. With an evicting policy
    the upper layer of a pair keeps what the lower one keeps. ``retain`` is a share of the units, chosen per KV head by
    the sum of the angles of key and value. The paper compares with the range of angles. A layer is restored for each
    call, so memory falls and decoding is slower.

    Args:
        start: the first layer that is merged, as a share of the depth.
        t: where directions are interpolated: 0 is the lower layer's, 1 the upper layer's.
        retain: share of the units that are kept unmerged.
    """

    name = "minicache"
    start: float = 0.5
    t: float = 0.6
    retain: float = 0.05

    def __post_init__(self) -> None:
        for key in ("start", "t", "retain"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"minicache: {key} must be from 0 to 1, got {getattr(self, key)}", f"{key}=0.5")

    def for_model(self, spec: ModelSpec) -> MiniCache:
        """See :class:`kvcli.share.base.LayerSharing`."""
        if spec.latent:
            raise ModelError(
                f"minicache merges keys and values apart, and {spec.name} keeps both as one latent",
                "without +minicache",
            )
        if not self._pairs(spec):
            raise ModelError(
                f"minicache merges neighbouring layers of full attention, and {spec.name} has no two alike from layer"
                f" {self._first(spec):,} of {spec.layers:,} on",
                "without +minicache",
            )
        return self

    def leaders(self, spec: ModelSpec) -> tuple[int, ...]:
        """See :class:`kvcli.share.base.LayerSharing`."""
        lower = {b: a for a, b in self.for_model(spec)._pairs(spec)}
        return tuple(lower.get(layer, layer) for layer in range(spec.layers))

    def _first(self, spec: ModelSpec) -> int:
        return int(self.start * spec.layers)

    def _pairs(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """Pairs of layers with their own units, without a window, that no other layer borrows from."""
        owners = self.owners(spec)
        found, layers = [], iter(range(self._first(spec), spec.layers - 1))
        for a in layers:
            b = a + 1
            alone = all(owners.count(i) == 1 and owners[i] == i and spec.sliding[i] is None for i in (a, b))
            if alone and maps.alike(spec, a, b):
                found.append((a, b))
                next(layers, None)
        return found

    def join(self, lower: StoredLayer, upper: KeptUnits, storage: KVStorage) -> tuple[StoredLayer, StoredLayer]:
        """See :class:`kvcli.share.base.LayerSharing`."""
        import torch

        below, c = lower.dense(), upper.pos.shape[1]
        above = [x.to(below[0].device) for x in (upper.k, upper.v)]
        parts = [
            [merge(a[:, start:stop], b[:, start:stop], self.t) for start, stop in blocks(c)]
            for a, b in zip(below, above, strict=True)
        ]
        k, v = (torch.cat([block.direction for block in part], dim=1) for part in parts)
        held = storage.freeze(KeptUnits(k, v, lower.pos, None, upper.layer, layers=upper.layers))
        angles = [torch.cat([block.angle for block in part], dim=1) for part in parts]
        slots = (angles[0] + angles[1]).topk(math.ceil(self.retain * c), dim=1).indices.sort(dim=1).values
        rows = slots[..., None].expand(-1, -1, below[0].shape[2])
        made = []
        for layer, units in enumerate((below, above)):
            lengths = torch.stack([torch.cat([block.lengths[layer] for block in part], dim=1) for part in parts])
            exact = torch.stack([x.gather(1, rows) for x in units])
            made.append(MergedLayer(held, lengths, exact, slots.int(), lower.pos, counts=layer == 0))
        return made[0], made[1]

    def pair_size(self, spec: ModelSpec, layer: int, units: int, storage: KVStorage) -> StorageBytes:
        """See :class:`kvcli.share.base.LayerSharing`."""
        exact = math.ceil(self.retain * units) * (2 * spec.unit_bytes + _SLOT)
        return StorageBytes(storage.size(spec, layer, units).device + spec.kv_heads * (units * _LENGTHS + exact), 0)

    def join_peak_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :class:`kvcli.share.base.LayerSharing`: both layers' rotated keys and values, the directions
        twice, and float32 copies of a block."""
        return spec.kv_heads * (units * 6 * spec.unit_bytes + min(units, BLOCK) * 8 * 4 * spec.head_dim)


@dataclass(frozen=True)
class Merged:
    """Vectors ``[…, D]`` of two layers as one.

    Attributes:
        direction: ``[…, D]``, of length 1.
        lengths: float32 ``[…, 1]`` of the lower layer and of the upper one.
        angle: float32 ``[…]`` between them, in radians.
    """

    direction: Tensor
    lengths: tuple[Tensor, Tensor]
    angle: Tensor


def merge(a: Tensor, b: Tensor, t: float) -> Merged:
    """Interpolate the directions of vectors on the sphere, at ``t`` from ``a`` to ``b``."""
    import torch
    from torch.nn.functional import normalize

    lengths = (a.float().norm(dim=-1, keepdim=True), b.float().norm(dim=-1, keepdim=True))
    one, two = normalize(a.float(), dim=-1), normalize(b.float(), dim=-1)
    angle = 2 * torch.atan2((one - two).norm(dim=-1), (one + two).norm(dim=-1))  # exact near 0, unlike acos
    wide, sine = angle[..., None], angle.sin()[..., None]
    curved = (((1 - t) * wide).sin() * one + (t * wide).sin() * two) / sine.clamp_min(_PARALLEL)
    direction = torch.where(sine < _PARALLEL, (1 - t) * one + t * two, curved)
    return Merged(normalize(direction, dim=-1).to(a.dtype), lengths, angle)


@dataclass(frozen=True)
class MergedLayer(ResidentLayer):
    """One layer of a pair; both have the same directions and slots.

    Attributes:
        directions: of keys and values, as the recipe's storage holds them.
        lengths: float32 ``[2, H_kv, c, 1]``, of keys and of values.
        exact: ``[2, H_kv, r, D]``, keys and values that are not merged.
        slots: int32 ``[H_kv, r]``, where these are.
        pos: ``[H_kv, c]`` int32.
        counts: whether the bytes of what both layers share are counted here.
    """

    directions: StoredLayer
    lengths: Tensor
    exact: Tensor
    slots: Tensor
    pos: Tensor
    counts: bool
    window: None = None

    @property
    def nbytes(self) -> int:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        both = self.directions.nbytes + self.slots.nbytes if self.counts else 0
        return both + self.lengths.nbytes + self.exact.nbytes

    def dense(self) -> tuple[Tensor, Tensor]:
        """Restore the layer's keys and values."""
        rows, made = self.slots.long()[..., None].expand(-1, -1, self.exact.shape[3]), []
        for part, length, exact in zip(self.directions.dense(), self.lengths, self.exact, strict=True):
            out = part.new_empty(part.shape)
            for start, stop in blocks(part.shape[1]):
                out[:, start:stop] = part[:, start:stop] * length[:, start:stop]
            made.append(out.scatter_(1, rows, exact))
        return made[0], made[1]

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels.attention import attention

        k, v = (x.to(q.device) for x in self.dense())
        return attention(q, k, v, scale, q_start, None)
