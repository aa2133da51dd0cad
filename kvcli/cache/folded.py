"""What a fold remembers of evicted units, beside the kept ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcli.eviction.base import Chunk
from kvcli.eviction.selection import gather
from kvcli.fold.base import PREFIX, Folding
from kvcli_kernels.merge import merge


@dataclass(frozen=True)
class Folded:
    """States of a fold after a document, per layer; empty ones of layers that evicted nothing. Immutable."""

    folding: Folding
    states: tuple[dict[str, Tensor], ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for state in self.states for t in state.values())

    def add(self, layer: int, q: Tensor, scale: float, term: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Merge the term of kept units with that of evicted ones, for queries before RoPE."""
        state = self.states[layer]
        return merge(term, self.folding.recall(layer, state, q, scale)) if state else term


def frozen(folding: Folding, layers: Iterable[dict[str, Tensor]]) -> Folded | None:
    """Return what a prefill has folded, from the running statistics of its layers; ``None`` if nothing."""
    states = tuple(map(of_fold, layers))
    return Folded(folding, states) if any(states) else None


def of_fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a layer's running statistics that belongs to its fold."""
    return {name: t for name, t in state.items() if name.startswith(PREFIX)}


def fold(folding: Folding, chunk: Chunk, index: Tensor) -> None:
    """Give the units that do not survive to a fold; ``index [H_kv, c]`` are the survivors."""
    heads, units = chunk.pos.shape
    gone = torch.ones(heads, units, dtype=torch.bool, device=index.device).scatter_(1, index, value=False)
    left = gone.nonzero()[:, 1].view(heads, units - index.shape[1])
    folding.take(chunk.layer, chunk.state, gather(chunk.k, left), gather(chunk.v, left), chunk.pos.gather(1, left))


def term_of(folding: Folding, layer: int, k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Fold units and attend to them at once; arguments as in :class:`kvcli.fold.base.Folding`."""
    state: dict[str, Tensor] = {}
    folding.take(layer, state, k, v, torch.zeros(k.shape[:2], dtype=torch.int32))
    return folding.recall(layer, state, q, 1.0)
