"""SubGen: the centres of clusters of keys (Zandieh et al. 2024, arXiv 2402.06082)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Subgen(EvictionPolicy):
    """Keeps the newest quarter and the centres of clusters of keys, each centre the key farthest from all before.

    Greedy k-centre, as in the paper's experiments; repeated at each eviction over kept and new keys, before RoPE. The
    paper's estimator, which also samples evicted units, is not part of this policy. It looks at no attention.
    """

    name: ClassVar[str] = "subgen"
    scores_are_final: ClassVar[bool] = False

    @property
    def newest(self) -> int:
        """The newest units, also kept at the end of the text."""
        return self.recent

    def score(self, chunk: Chunk) -> Tensor:
        """Return zeros; :meth:`choose` compares keys with each other: ``[H_kv, new]``."""
        return chunk.scores.new_zeros(chunk.new_k.shape[0], chunk.new)

    def choose(self, chunk: Chunk, scores: Tensor, budget: int, recent: int) -> Tensor:
        """Add the unit that is farthest from those chosen, until there are ``budget``; sinks and newest come first."""
        import torch

        heads, units = scores.shape
        k = chunk.k.float()
        square = k.square().sum(dim=-1)
        sinks = int((chunk.pos[0] < self.sinks).sum())
        first = [*range(sinks), *range(max(sinks, units - recent), units)] or [0]
        taken = torch.zeros(heads, units, dtype=torch.bool, device=k.device)
        distance = torch.full_like(square, float("inf"))
        for start in range(0, len(first), 64):
            some = torch.tensor(first[start : start + 64], device=k.device)
            products = k @ k[:, some].transpose(1, 2)
            near = (square.unsqueeze(-1) + square[:, None, some] - 2 * products).amin(dim=-1)
            distance = torch.minimum(distance, near)
        taken[:, first] = True
        distance.masked_fill_(taken, float("-inf"))
        rows = torch.arange(heads, device=k.device)
        for _ in range(budget - len(first)):
            far = distance.argmax(dim=1)
            centre = k[rows, far]
            near = square + square[rows, far].unsqueeze(1) - 2 * (k @ centre.unsqueeze(-1)).squeeze(-1)
            distance = torch.minimum(distance, near)
            taken[rows, far] = True
            distance[rows, far] = float("-inf")
        return taken.nonzero()[:, 1].view(heads, -1)
