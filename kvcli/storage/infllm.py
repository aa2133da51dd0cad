"""InfLLM: blocks selected by representative units, the same for all heads (Xiao et al. 2024, arXiv 2402.04617).

A unit represents its block if nearby queries attend to it. Its score is the product of its key with a sum of queries,
gathered per block during prefill. These are the queries from its own block to ``local`` units further on. Fetched units
keep their positions; the paper puts all of them at one distance, for texts beyond the model's window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.storage.base import KeptUnits, KVStorage, StorageBytes, StoredLayer
from kvcli.storage.offload.checks import at_least
from kvcli.storage.offload.landmark import Landmarks
from kvcli.storage.offload.layer import Selection, footprint, keep_on_device, offload

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

_QUERIES = "infllm.queries"


@dataclass(frozen=True, kw_only=True)
class InfLLM(KVStorage):
    """Keeps all units in host memory and attends to the same few blocks in all heads, and to both ends of the text.

    Args:
        block: units per block.
        blocks: blocks that each step attends to.
        sinks: first units, always attended to.
        local: last units, always attended to.
        representatives: units whose mean key represents a block.
    """

    block: int = 128
    blocks: int = 16
    sinks: int = 128
    local: int = 4096
    representatives: int = 4

    name: ClassVar[str] = "infllm"
    offloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, block=1, blocks=1, sinks=0, local=0, representatives=1)

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Count one mean key per block, staging, and both ends."""
        if self._stays_on_device(units):
            return super().size(spec, layer, units)
        n = (units - self.sinks - self.local) // self.block
        exact = units - n * self.block
        return footprint(spec, units, index=n * spec.head_dim, staged=self.block * self.blocks, exact=exact)

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        """Sum queries per block of the document: float32 ``[H, blocks, D]``."""
        import torch

        del layer
        heads, m, dim = q.shape
        end = -(-(start + m) // self.block)
        old = state.get(_QUERIES, q.new_zeros(heads, 0, dim, dtype=torch.float32))
        sums = torch.cat([old, old.new_zeros(heads, max(0, end - old.shape[1]), dim)], dim=1)
        block_ids = torch.arange(start, start + m, device=q.device) // self.block
        state[_QUERIES] = sums.index_add(1, block_ids, q.float())

    def observed_nbytes(self, spec: ModelSpec, layer: int, tokens: int) -> int:
        """Return the bytes of one sum per block and query head."""
        del layer
        return 4 * spec.heads * -(-tokens // self.block) * spec.head_dim

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Offload the units; the mean key of each block's representatives becomes the index."""
        if kept.window is not None or self._stays_on_device(kept.k.shape[1]):
            return keep_on_device(kept)
        scores = self._representative_scores(kept)

        def index(keys: Tensor) -> Shared:
            block_scores = scores[:, self.sinks : self.sinks + keys.shape[1] * self.block].view(keys.shape[:3])
            best = block_scores.topk(min(self.representatives, self.block), dim=-1).indices
            chosen = keys.gather(2, best.unsqueeze(-1).expand(*best.shape, keys.shape[3]))
            means = chosen.float().mean(2).to(keys.dtype)  # [H_kv, N, D]
            return Shared(Landmarks(means.transpose(0, 1).flatten(1)[None], self.blocks), len(means))

        return offload(kept, index, block=self.block, first=self.sinks, last=self.local)

    def _representative_scores(self, kept: KeptUnits) -> Tensor:
        """Score each unit by its attention from nearby queries: float32 ``[H_kv, c]``."""
        import torch

        k, sums = kept.k, kept.state.get(_QUERIES)
        kv_heads, _, dim = k.shape
        if sums is None:  # no observed queries: similarity to the mean key
            return (k.float() * k.float().mean(1, keepdim=True)).sum(-1)
        sums = sums.view(kv_heads, -1, *sums.shape[1:]).sum(1)  # over the group
        prefix = torch.cat([sums.new_zeros(kv_heads, 1, dim), sums.cumsum(1)], dim=1)
        begin = kept.pos.long() // self.block
        end = (begin + 1 + -(-self.local // self.block)).clamp(max=sums.shape[1])
        upper, lower = (prefix.gather(1, i.unsqueeze(-1).expand(-1, -1, dim)) for i in (end, begin))
        return (k.float() * (upper - lower)).sum(-1)

    def _stays_on_device(self, units: int) -> bool:
        return units <= self.sinks + self.local + self.block * self.blocks


@dataclass(frozen=True)
class Shared:
    """One selection for all ``heads``: landmarks and the mean query, with their heads concatenated."""

    blocks: Landmarks
    heads: int

    @property
    def nbytes(self) -> int:
        """Bytes of one vector per block and head."""
        return self.blocks.nbytes

    @property
    def max_blocks(self) -> int:
        return self.blocks.max_blocks

    def select(self, q: Tensor, scale: float) -> Selection:
        """See :class:`kvcli.storage.offload.layer.Index`."""
        mean = q.float().reshape(self.heads, -1, q.shape[2]).mean(1).reshape(1, 1, -1)
        return Selection(self.blocks.select(mean, scale).ids.expand(self.heads, -1).contiguous())
