"""MInference (Jiang et al. 2024, arXiv 2407.02490): vertical and slash patterns of attention, estimated per head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from kvcli.errors import ModelError, UsageError
from kvcli.sparse_prefill import patterns
from kvcli.sparse_prefill.base import ChunkAttention, SparsePrefill
from kvcli.types import DTYPE_BYTES, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

BLOCK, ROWS = 64, 64  # as in vertical_slash; a test compares them


@dataclass(frozen=True, kw_only=True)
class MInference(SparsePrefill):
    """A chunk attends to few columns and diagonals of keys, chosen per head.

    MInference (Jiang et al. 2024, arXiv 2407.02490). The last 64 queries of each chunk attend to everything. Keys with
    the largest sums of their weights (columns), and distances with the largest sums (diagonals), are attended to by
    all queries of the chunk. Diagonals choose blocks of 64 keys for 64 queries. The first 30 keys and the nearest 100
    distances are always chosen.

    Differences: all heads have the vertical-slash pattern and the same sizes, as in the authors' released searches but
    for a few heads. With ``heads=file`` each has the one that ``kvcli calibrate --prefill minference`` found; blocks of
    keys, which the released search replaces, are no candidates. The patterns are estimated for each chunk, over kept
    units and the chunk. Layers with a sliding window or attention sinks attend to everything. So does every layer while
    it has at most ``vertical + slash`` units: with small budgets nothing changes. Eviction scores do not use the
    patterns. Memory and answers are those of the policy. It gathers keys in plain tensor operations, without a kernel
    of its own.

    Args:
        vertical: columns per head.
        slash: diagonals per head.
        heads: ``file`` for the stored patterns of each head, or their digest, in the place of both numbers.
    """

    name = "minference"
    vertical: int = 1000
    slash: int = 6096
    heads: str = ""

    def __post_init__(self) -> None:
        if self.heads and (self.vertical, self.slash) != (MInference.vertical, MInference.slash):
            raise UsageError("minference: heads=file names the sizes too", "minference(heads=file)")
        if self.vertical < 1 or self.slash < 1:
            raise UsageError(
                f"minference(vertical={self.vertical}, slash={self.slash}): both must be 1 or more", "minference"
            )

    def for_model(self, spec: ModelSpec) -> Self:
        """See :class:`kvcli.sparse_prefill.base.SparsePrefill`."""
        if not self.heads:
            return self
        found = patterns.digest(patterns.stored(spec))
        if self.heads not in ("file", found):
            raise ModelError(
                f"the patterns of {spec.name} are {found}, and the recipe says {self.heads}", "minference(heads=file)"
            )
        return replace(self, heads=found)

    def open(self, spec: ModelSpec) -> ChunkAttention:
        """See :class:`kvcli.sparse_prefill.base.SparsePrefill`."""
        if not self.heads:
            return self
        self.for_model(spec)
        return patterns.PerHead(patterns.stored(spec))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # noqa: ARG002
        """See :class:`kvcli.sparse_prefill.base.ChunkAttention`."""
        from kvcli.sparse_prefill import vertical_slash
        from kvcli_kernels.attention import causal_attention

        if self.vertical + self.slash >= k.shape[1]:
            return causal_attention(q, k, v, scale)
        return vertical_slash.attend(q, k, v, scale, self.vertical, self.slash)

    def work_nbytes(self, spec: ModelSpec, units: int, chunk: int) -> int:
        """See :class:`kvcli.sparse_prefill.base.SparsePrefill`."""
        if not self.heads and self.vertical + self.slash >= units:
            return 0
        seen = units if self.heads else min(units, self.vertical + 2 * BLOCK * self.slash)
        gathered = seen * (2 * spec.head_dim * DTYPE_BYTES[spec.dtype] + 8 + 3 * 4 * BLOCK)
        output = 2 * chunk * spec.head_dim * DTYPE_BYTES[spec.dtype]
        return spec.heads * (max(gathered, units * (3 * 4 * ROWS + 8)) + 4 * units + output)
