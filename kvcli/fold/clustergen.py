"""SubGen's estimator (Zandieh et al. 2024, arXiv 2402.06082): samples of evicted KV pairs, by cluster and by norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.errors import UsageError
from kvcli.fold.base import PREFIX, Fold
from kvcli.types import ModelSpec, Rotary
from kvcli.utils.hashing import uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CENTRE, _COUNT, _SAMPLE, _ORDER = (f"{PREFIX}{name}" for name in ("centre", "count", "sample", "order"))
_KEY, _VALUE, _PRIORITY, _BOUND = (f"{PREFIX}{name}" for name in ("key", "value", "priority", "bound"))


@dataclass(frozen=True, kw_only=True)
class ClusterGen(Fold):
    """Attention to evicted KV pairs is estimated from samples of clusters of their keys, and of their values by norm.

    SubGen (Zandieh et al. 2024, arXiv 2402.06082; ClusterGen 2025). Evicted keys form clusters, each with its count and
    a uniform sample of its keys, which estimate the sum of weights. KV pairs drawn with probabilities proportional to
    the squared norm of their value estimate the weighted sum of values. Nothing is trained.

    Differences: the number of clusters is bounded; then a key joins the nearest one whatever its distance. Samples are
    drawn without replacement (values by priority sampling, Duffield et al. 2007), which is exact while everything fits.
    Keys are taken before RoPE, because evictions move kept units to other slots; all of them count as equally far from
    every query.

    Args:
        clusters: most clusters per KV head.
        samples: keys that are kept of a cluster.
        values: KV pairs that are kept for the sum of values.
        delta: a key farther than this from every centre begins a cluster.
        distance: in positions, of evicted keys from a query. Keys at a query's own place would outweigh all others.
        seed: of the random numbers, which depend on places alone.
    """

    name = "clustergen"
    clusters: int = 16
    samples: int = 4
    values: int = 64
    delta: float = 1.0
    distance: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("clusters", "samples", "values"):
            if getattr(self, key) < 1:
                raise UsageError(f"clustergen: {key} must be 1 or more, got {getattr(self, key)}", f"{key}=16")
        if not 0 <= self.delta < float("inf"):
            raise UsageError(f"clustergen: delta must be 0 or more, got {self.delta}", "delta=1.0")
        for key in ("distance", "seed"):
            if getattr(self, key) < 0:
                raise UsageError(f"clustergen: {key} must be 0 or more, got {getattr(self, key)}", f"{key}=0")

    def open(self, spec: ModelSpec, device: torch.device, rotary: Rotary) -> Clusters:  # noqa: ARG002
        """See :class:`kvcli.fold.base.Fold`."""
        return Clusters(self, rotary)

    def state_nbytes(self, spec: ModelSpec) -> int:
        """Count centres, samples and drawn KV pairs, in float32."""
        dim, sampled = spec.head_dim, self.clusters * self.samples
        numbers = self.clusters * (dim + 1) + sampled * (dim + 1) + self.values * (2 * dim + 1) + 1
        return 4 * spec.kv_heads * numbers

    def _begin(self, k: Tensor) -> dict[str, Tensor]:
        heads, _, dim = k.shape
        sampled, inf = self.clusters * self.samples, float("inf")
        return {
            _CENTRE: k.new_zeros(heads, self.clusters, dim),
            _COUNT: k.new_zeros(heads, self.clusters),
            _SAMPLE: k.new_zeros(heads, sampled, dim),
            _ORDER: k.new_full((heads, sampled), inf),
            _KEY: k.new_zeros(heads, self.values, dim),
            _VALUE: k.new_zeros(heads, self.values, dim),
            _PRIORITY: k.new_zeros(heads, self.values),
            _BOUND: k.new_zeros(heads),
        }

    def take(self, layer: int, state: dict[str, Tensor], k: Tensor, v: Tensor, pos: Tensor) -> None:
        """See :class:`kvcli.fold.base.Folding`."""
        import torch

        k, v, place = k.float(), v.float(), pos.long().to(k.device)
        head = torch.arange(k.shape[0], device=k.device)[:, None]
        old = state if _CENTRE in state else self._begin(k)
        centre, cluster = self._join(old, k)
        count = old[_COUNT].scatter_add(1, cluster, torch.ones_like(cluster, dtype=torch.float32))
        order = uniform(place, head, place * 0 + layer, place * 0 + self.seed)
        sample, order = self._sampled(old, k, cluster, order)
        draw = 1 - uniform(place, head, place * 0 + layer, place * 0 + self.seed, place * 0 + 1)
        state |= {_CENTRE: centre, _COUNT: count, _SAMPLE: sample, _ORDER: order}
        state |= self._drawn(old, k, v, v.square().sum(-1) / draw)

    def _join(self, old: dict[str, Tensor], k: Tensor) -> tuple[Tensor, Tensor]:
        """Begin clusters with the keys that are farthest from all centres; the nearest cluster of each key."""
        import torch

        centre, used = old[_CENTRE].clone(), (old[_COUNT] > 0).sum(1)
        apart = torch.cdist(k, centre).masked_fill_(
            torch.arange(self.clusters, device=k.device) >= used[:, None, None], float("inf")
        )
        nearest, cluster = apart.min(2)
        rows = torch.arange(k.shape[0], device=k.device)
        while True:
            farthest, index = nearest.max(1)
            begins = (farthest > self.delta) & (used < self.clusters)
            if not bool(begins.any()):
                return centre, cluster
            new, slot = k[rows, index], used.clamp_max(self.clusters - 1)
            centre[rows[begins], slot[begins]] = new[begins]
            closer = torch.cdist(k, new[:, None]).squeeze(2)
            better = begins[:, None] & (closer < nearest)
            nearest = torch.where(better, closer, nearest)
            cluster = torch.where(better, slot[:, None], cluster)
            used = used + begins

    def _sampled(self, old: dict[str, Tensor], k: Tensor, cluster: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Keep of each cluster the keys with the smallest random numbers."""
        import torch

        heads, _, dim = k.shape
        slots = self.clusters * self.samples
        before = torch.arange(slots, device=k.device) // self.samples
        both = torch.cat([before.expand(heads, slots), cluster], dim=1)
        orders = torch.cat([old[_ORDER], order], dim=1)
        by = torch.argsort(both.double() * 4 + orders.double().clamp_max(2), dim=1, stable=True)
        both, orders = both.gather(1, by), orders.gather(1, by)
        rank = torch.arange(both.shape[1], device=k.device) - torch.searchsorted(both, both)
        slot = torch.where(rank < self.samples, both * self.samples + rank, slots)
        keys = torch.cat([old[_SAMPLE], k], dim=1).gather(1, by[..., None].expand(-1, -1, dim))
        kept = k.new_zeros(heads, slots + 1, dim).scatter_(1, slot[..., None].expand(-1, -1, dim), keys)
        made = orders.new_full((heads, slots + 1), float("inf")).scatter_(1, slot, orders)
        return kept[:, :slots].contiguous(), made[:, :slots].contiguous()

    def _drawn(self, old: dict[str, Tensor], k: Tensor, v: Tensor, priority: Tensor) -> dict[str, Tensor]:
        """Keep the KV pairs with the largest priorities, and the largest priority that was left out."""
        import torch

        priorities = torch.cat([old[_PRIORITY], priority], dim=1)
        best, index = priorities.topk(self.values + 1, dim=1)
        rows = index[:, : self.values, None].expand(-1, -1, k.shape[2])
        return {
            _KEY: torch.cat([old[_KEY], k], dim=1).gather(1, rows),
            _VALUE: torch.cat([old[_VALUE], v], dim=1).gather(1, rows),
            _PRIORITY: best[:, : self.values].contiguous(),
            _BOUND: torch.maximum(old[_BOUND], best[:, self.values]),
        }

    def recall(self, state: dict[str, Tensor], q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.fold.base.Folding`; for queries as far from position 0 as they are from evicted keys."""
        import torch

        from kvcli_kernels.attention import scaled

        kv_heads, _, dim = state[_CENTRE].shape
        heads, m, _ = q.shape
        rows = q.float().reshape(kv_heads, heads // kv_heads * m, dim)
        held = state[_ORDER].isfinite().view(kv_heads, self.clusters, self.samples)
        share = state[_COUNT] / held.sum(2).clamp_min(1)
        factors = (share[..., None] * held).view(kv_heads, 1, -1)
        lse = (scaled(rows @ state[_SAMPLE].transpose(1, 2), scale) + factors.log()).logsumexp(-1)
        weight = state[_VALUE].square().sum(-1)
        drawn = torch.where(weight > 0, torch.maximum(weight, state[_BOUND][:, None]) / weight.clamp_min(1e-30), 0.0)
        logits = scaled(rows @ state[_KEY].transpose(1, 2), scale) + drawn.log()[:, None]
        o = torch.exp(logits - lse[..., None]) @ state[_VALUE]
        return o.to(q.dtype).view(heads, m, dim), lse.view(heads, m)


@dataclass(frozen=True)
class Clusters:
    """The fold with a model's RoPE."""

    fold: ClusterGen
    rotary: Rotary

    def take(self, layer: int, state: dict[str, Tensor], k: Tensor, v: Tensor, pos: Tensor) -> None:
        """See :class:`kvcli.fold.base.Folding`."""
        self.fold.take(layer, state, k, v, pos)

    def recall(self, layer: int, state: dict[str, Tensor], q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.fold.base.Folding`."""
        import torch

        places = torch.full(q.shape[:2], self.fold.distance, device=q.device)
        o, lse = self.fold.recall(state, self.rotary.rotate(layer, q, places), scale)
        return o.to(q.dtype), lse
