"""Elastic Cache: evicted units are averaged into the nearest survivor (Liu et al. 2024, arXiv 2407.18121)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk
from kvcli.eviction.h2o import H2o

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Elastic(H2o):
    """Keeps the units with the most accumulated attention of all heads, and averages the others into the nearest one.

    All heads of a layer keep the same units. An evicted unit's key and value go to the kept unit with the nearest
    position, the earlier of two. Means stay means of tokens over many evictions. Published for one eviction after
    prefill, with keys after RoPE; here at each eviction, with keys before RoPE. What the paper evicts while it answers
    has no counterpart, because answers are never evicted. The authors' code reads sorted indices as ranks; this is the
    paper's rule.
    """

    name: ClassVar[str] = "elastic"
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.victims != "drop":
            raise UsageError("elastic averages evicted units itself", "leave out victims")

    @property
    def recent(self) -> int:
        """The last unit, as published, unless ``stabilizers`` is set."""
        return 1 if self.stabilizers is None else self.stabilizers

    @property
    def changes_units(self) -> bool:
        return True

    def rescore(self, chunk: Chunk) -> Tensor:
        """Add the chunk's post-softmax attention, averaged over all heads: ``[H_kv, kept + new]``."""
        return super().rescore(chunk).mean(dim=0, keepdim=True).expand(chunk.pos.shape)

    def remains(self, chunk: Chunk, index: Tensor) -> tuple[Tensor, Tensor]:
        """Average each evicted unit's key and value into the nearest survivor's."""
        import torch

        from kvcli.eviction.merging import SIZE, average, sizes

        anchors, places = chunk.pos.gather(1, index).contiguous(), chunk.pos.contiguous()
        count = index.shape[1]
        right = torch.searchsorted(anchors, places).clamp_max(count - 1)
        left = (right - 1).clamp_min(0)
        nearer_left = (places - anchors.gather(1, left)).abs() <= (anchors.gather(1, right) - places).abs()
        target = torch.where(nearer_left, left, right)
        size = sizes(chunk.state, chunk.pos)
        chunk.state[SIZE] = size.new_zeros(index.shape).scatter_add(1, target, size)
        return average(chunk.k, size, target, count), average(chunk.v, size, target, count)

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: a size per unit."""
        return 4 * spec.kv_heads * units
