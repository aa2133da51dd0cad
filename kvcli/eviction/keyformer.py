"""Keyformer: accumulated attention of noisy logits (Adnan et al. 2024, arXiv 2403.09054)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk
from kvcli.eviction.h2o import H2o

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

_ROWS = 16  # noise of one query has as many numbers as there are units, in int64 at first


@dataclass(frozen=True, kw_only=True)
class Keyformer(H2o):
    """Keeps the units with the most accumulated attention, computed from logits with Gumbel noise.

    The noise stands for what eviction does to the softmax: ``Σ softmax((z + noise · ζ) / τ)``. Published: τ grows with
    each generated token and nothing is evicted before. Here it grows with each chunk. Noise depends on places alone,
    so that a resumed prefill is the same.

    Args:
        noise: factor on the standard Gumbel noise.
        delta: growth of τ, which starts at 1, per chunk.
        seed: of the noise.
    """

    name: ClassVar[str] = "keyformer"
    noise: float = 1.0
    delta: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("noise", "delta", "seed"):
            if not 0 <= getattr(self, key) < 2**31:
                raise UsageError(f"keyformer: {key} must be 0 or more, got {getattr(self, key)}", f"{key}=0")

    @property
    def recent(self) -> int:
        """30 % of the budget, as published, unless ``stabilizers`` is set."""
        return (self.budget or 0) * 3 // 10 if self.stabilizers is None else self.stabilizers

    def rescore(self, chunk: Chunk) -> Tensor:
        """Add the chunk's noisy attention, averaged over the query group: ``[H_kv, kept + new]``."""
        import torch

        done = chunk.state.get("chunks", torch.zeros(1, dtype=torch.int64, device=chunk.pos.device))
        chunk.state["chunks"] = done + 1
        temperature = 1 + self.delta * done
        heads, group = chunk.pos.shape[0], chunk.q.shape[0] // chunk.pos.shape[0]
        mass = torch.zeros(chunk.pos.shape, device=chunk.pos.device)
        for first, block in chunk.blocks(0, chunk.new, _ROWS):
            logits = block.float()
            if self.noise:
                logits += self.noise * gumbel(chunk, first, logits.shape[2], self.seed)
            mass += torch.softmax(logits / temperature, dim=-1).sum(dim=(1, 2))
        mass = mass.view(heads, -1) / group
        mass[:, : chunk.kept] += chunk.scores
        return mass

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: the number of chunks too."""
        return super().state_nbytes(spec, units) + 8


def gumbel(chunk: Chunk, first: int, rows: int, seed: int) -> Tensor:
    """Draw a standard Gumbel number per query head, query and unit: float32 ``[H_kv, H / H_kv, rows, u]``."""
    import torch

    from kvcli.utils.hashing import uniform

    heads, group = chunk.pos.shape[0], chunk.q.shape[0] // chunk.pos.shape[0]
    key = chunk.pos.long()[:, None, None, :]
    query = torch.arange(chunk.start + first, chunk.start + first + rows, device=key.device)[None, None, :, None]
    head = torch.arange(heads * group, device=key.device).view(heads, group, 1, 1)
    return -torch.log(-torch.log(uniform(key, head, key.new_tensor(chunk.layer), query, seed) + 2**-25))
