"""KVMerger: neighbours with similar keys become one unit (Wang et al. 2024, arXiv 2407.08454)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk
from kvcli.eviction.h2o import H2o

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

_SETS, _CHOSEN = "sets", "chosen"  # from choose() to remains(): the set of each unit, and the surviving sets


@dataclass(frozen=True, kw_only=True)
class Kvmerger(H2o):
    """Merges neighbouring units with the most similar keys, weighted by a Gaussian around the most attended one.

    Published with a threshold on the cosine of neighbours; here each head's threshold is the one that gives the budget.
    Published once after prefill, with keys after RoPE; here at each eviction, with keys before RoPE. A unit counts as
    many times as it holds tokens. Heavy hitters and the newest quarter are not merged. If too few neighbours may be
    merged, the units with the least attention are dropped.

    Args:
        heavy: share of the budget for units with the most attention, which stay alone.
    """

    name: ClassVar[str] = "kvmerger"
    heavy: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.heavy <= 1:
            raise UsageError(f"kvmerger: heavy must be from 0 to 1, got {self.heavy}", "heavy=0.05")
        if self.victims != "drop":
            raise UsageError("kvmerger merges evicted units itself", "leave out victims")

    @property
    def recent(self) -> int:
        """A quarter of the budget, unless ``stabilizers`` is set."""
        return (self.budget or 0) // 4 if self.stabilizers is None else self.stabilizers

    @property
    def changes_units(self) -> bool:
        return True

    def choose(self, chunk: Chunk, scores: Tensor, budget: int, recent: int) -> Tensor:
        """Fuse as many pairs of neighbours as are too many; the most attended unit of each set survives."""
        import torch
        import torch.nn.functional as F

        heads, units = scores.shape
        protected = chunk.pos < self.sinks
        protected[:, units - recent :] = True
        alone = protected.scatter(1, scores.topk(min(units, round(self.heavy * budget)), dim=1).indices, True)
        k = F.normalize(chunk.k.float(), dim=-1)
        cosine = (k[:, 1:] * k[:, :-1]).sum(dim=-1).masked_fill(alone[:, 1:] | alone[:, :-1], float("-inf"))
        best = cosine.topk(units - budget, dim=1)
        fused = torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, best.indices, best.values > float("-inf"))
        sets = F.pad((~fused).cumsum(dim=1), (1, 0))
        rank = scores.masked_fill(protected, float("inf"))
        place = torch.arange(units, device=scores.device).expand(heads, units)
        largest = scores.new_full((heads, units), float("-inf")).scatter_reduce(1, sets, rank, "amax")
        candidates = place.masked_fill(rank < largest.gather(1, sets), units)
        pivot = place.new_full((heads, units), units).scatter_reduce(1, sets, candidates, "amin")
        chosen = largest.topk(budget, dim=1).indices.sort(dim=1).values
        chunk.state[_SETS], chunk.state[_CHOSEN] = sets, chosen
        return pivot.gather(1, chosen)

    def remains(self, chunk: Chunk, index: Tensor) -> tuple[Tensor, Tensor]:
        """Merge each set's keys and values, weighted by a Gaussian of the distance to the survivor's key."""
        import torch

        from kvcli.eviction.merging import SIZE, average, sizes
        from kvcli.eviction.selection import gather

        sets, chosen = chunk.state.pop(_SETS), chunk.state.pop(_CHOSEN)
        heads, units = sets.shape
        k, size = chunk.k.float(), sizes(chunk.state, chunk.pos)

        def total(x: Tensor) -> Tensor:  # of each unit's set
            return torch.zeros_like(x).scatter_add(1, sets, x).gather(1, sets)

        pivots = k.new_zeros(heads, units, k.shape[2])
        pivots = pivots.scatter(1, chosen.unsqueeze(-1).expand(-1, -1, k.shape[2]), gather(k, index))
        square = (k - gather(pivots, sets)).square().sum(dim=-1)
        members = total(torch.ones_like(square))
        first = torch.exp(-square / (2 * total(square) / members).clamp_min(1e-12))
        sigma = total(first) / (2**0.5 * members)
        weight = size * torch.exp(-square / (2 * sigma.square()))
        chunk.state[SIZE] = torch.zeros_like(size).scatter_add(1, sets, size).gather(1, chosen)
        return gather(average(chunk.k, weight, sets, units), chosen), gather(
            average(chunk.v, weight, sets, units), chosen
        )

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: a size per unit."""
        return 4 * spec.kv_heads * units
