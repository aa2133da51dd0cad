"""KeyDiff: distinctive keys (Park et al. 2025, arXiv 2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Keydiff(EvictionPolicy):
    """Keeps the keys that differ most from the mean direction of all keys read so far.

    The mean covers the whole stream, evicted tokens included, and every chunk rescores the kept keys; the published
    form uses the mean over the cache.
    """

    name: ClassVar[str] = "keydiff"
    scores_are_final: ClassVar[bool] = False

    def rescore(self, chunk: Chunk) -> Tensor:
        """Compute ``-cos(k, mean of all normalised keys so far)``: ``[H_kv, kept + new]``."""
        import torch.nn.functional as F

        k = F.normalize(chunk.k.float(), dim=-1)
        total = F.normalize(chunk.new_k.float(), dim=-1).sum(dim=1, keepdim=True) + chunk.state.get("sum", 0)
        chunk.state["sum"] = total
        return -(k @ F.normalize(total, dim=-1).transpose(1, 2)).squeeze(-1)

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: the sum of keys too."""
        return super().state_nbytes(spec, units) + 4 * spec.kv_heads * spec.head_dim
