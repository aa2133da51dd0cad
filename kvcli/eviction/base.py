"""The interface of an eviction policy: its hyper-parameters, and the scores it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.chunk import Chunk
from kvcli.eviction.merging import MATCH_QUERIES, Victims
from kvcli.types import ModelSpec, Positions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SURPRISE", "Chunk", "EvictionPolicy"]  # all that a policy needs

SURPRISE = "surprise"
"""Name of a running statistic: ``-log p(token | text before it)`` of the last chunk's tokens, float32 ``[new]``."""


@dataclass(frozen=True, kw_only=True)
class EvictionPolicy:
    """A scorer with a budget; a frozen dataclass whose fields are its hyper-parameters.

    Args:
        budget: units that each KV head of each layer keeps during prefill; ``None`` keeps all.
        stabilizers: newest units kept after every chunk but the last, whatever their score; their stored scores do not
            change. ``None`` is a quarter of the budget.
        sinks: first tokens of the text that are always kept; they count against the budget.
        tail: last tokens of the text, read after the last eviction and kept on top of the budget.
        positions: RoPE positions of kept units (see :data:`kvcli.types.Positions`).
        pyramid: how unevenly the layers share the budget: the first keeps ``1 + pyramid`` of it, the last ``1 -
            pyramid``, linear in between. PyramidKV (Cai et al. 2024, arXiv 2406.02069) uses 0.95.
        victims: evicted units are dropped (``drop``), averaged into the most similar survivor's value (``merge``), or
            replaced by fitted values of all survivors, with which attention stays almost as it was (``match``).
    """

    budget: int | None = 1024
    stabilizers: int | None = None
    sinks: int = 0
    tail: int = 0
    positions: Positions = "compact"
    pyramid: float = 0.0
    victims: Victims = "drop"

    name: ClassVar[str]
    """The policy's name in recipes; equal to its module's name."""

    scores_are_final: ClassVar[bool] = True
    """Whether a token's score depends on no token beyond the next ``lookahead``, and is final once they are read."""

    query_aware: ClassVar[bool] = False
    """Whether the question's tokens follow each chunk as a probe, so that prefill depends on the question."""

    needs_heads: ClassVar[bool] = False
    """Whether the policy scores with the model's retaining heads."""

    uses_surprise: ClassVar[bool] = False
    """Whether each layer's state has the previous chunk's :data:`SURPRISE`."""

    evicts_early: ClassVar[bool] = False
    """Whether :meth:`choose` may evict units although no more than the budget are there."""

    allots: ClassVar[bool] = False
    """Whether the layers share the budget anew once the whole text is read (:meth:`allot`)."""

    observers: ClassVar[int] = 0
    """Maximum number of queries, at most 128, whose attention is recomputed at a time; the plan counts their logits."""

    def __post_init__(self) -> None:
        for key in ("stabilizers", "sinks", "tail"):
            if (getattr(self, key) or 0) < 0:
                raise UsageError(f"{self.name}: {key} must be 0 or more, got {getattr(self, key)}")
        if self.budget is None:
            return
        if self.budget < 1:
            raise UsageError(f"{self.name}: the budget must be 1 or more, got {self.budget}", "--budget 1024")
        if not 0 <= self.pyramid < 1:
            raise UsageError(f"{self.name}: pyramid must be 0 or more and below 1, got {self.pyramid}", "pyramid=0.95")
        if self.protected > self.budget:
            raise UsageError(
                f"{self.name}: sinks={self.sinks} and stabilizers={self.protected - self.sinks}"
                f" do not fit budget={self.budget}",
                f"--budget {self.protected} or more",
            )

    def units(self, layer: int, layers: int) -> int | None:
        """Return the budget of one of ``layers`` layers, in units per KV head; ``None`` keeps all.

        Up to rounding the budgets sum to ``layers`` times the budget. A layer gets at least its protected units; the
        other layers give up the excess in proportion to their shares.
        """
        if self.budget is None or not self.pyramid or layers < 2:
            return self.budget
        shares = [1 + self.pyramid * (1 - 2 * i / (layers - 1)) for i in range(layers)]
        floor = max(1, self.protected)
        free = layers  # shares decrease, so the layers at the floor are the last ones
        while True:
            scale = (layers * self.budget - (layers - free) * floor) / sum(shares[:free])
            above = sum(scale * share >= floor for share in shares[:free])
            if above == free or not above:
                break
            free = above
        return round(scale * shares[layer]) if layer < free and above else floor

    def final_units(self, layer: int, layers: int) -> int | None:
        """Return what :meth:`units` is after :meth:`allot`, on average over the layers."""
        return self.units(layer, layers)

    def allot(self, states: Sequence[dict[str, Tensor]], counts: Sequence[int]) -> list[int]:  # noqa: ARG002
        """Divide the budget among the layers from their running statistics, when the whole text is read.

        Args:
            states: per layer that evicts, its statistics.
            counts: units per KV head that it has; it gets no more.

        Returns:
            units per KV head of each layer.
        """
        raise TypeError(f"the policy '{self.name}' does not define allot()")

    @property
    def newest(self) -> int:
        """Number of newest units kept after every chunk, the last included."""
        return 0

    @property
    def protected(self) -> int:
        """Number of units kept whatever their score: sinks and newest units."""
        return self.sinks + max(self.recent, self.newest)

    @property
    def lookahead(self) -> int:
        """Number of later tokens that influence a final score."""
        return 0

    @property
    def recent(self) -> int:
        """Number of stabilizers: as given, else a quarter of the budget."""
        if self.stabilizers is not None:
            return self.stabilizers
        return 0 if self.budget is None else self.budget // 4

    def score(self, chunk: Chunk) -> Tensor:  # noqa: ARG002
        """Score the chunk's new units, higher is kept: float ``[H_kv, new]``. A pure function of tensors."""
        raise TypeError(f"the policy '{self.name}' defines neither score() nor rescore()")

    def rescore(self, chunk: Chunk) -> Tensor:
        """Score all units, kept ones first: float32 ``[H_kv, kept + new]``.

        A policy with final scores need not override this: kept units keep their stored scores.
        """
        import torch

        return torch.cat([chunk.scores, self.score(chunk).float()], dim=1)

    def choose(self, chunk: Chunk, scores: Tensor, budget: int, recent: int) -> Tensor:
        """Choose the survivors: int64 ``[H_kv, c']`` with ``c' <= budget``, strictly increasing in each row.

        Args:
            chunk: the chunk. Statistics per unit in its ``state`` are to be reduced to the survivors'.
            scores: float32 ``[H_kv, kept + new]`` from :meth:`rescore`.
            budget: of the layer.
            recent: number of newest units that must survive.
        """
        from kvcli.eviction.selection import select

        return select(scores, budget, sinks=chunk.pos < self.sinks if self.sinks else None, recent=recent)

    @property
    def changes_units(self) -> bool:
        """Whether :meth:`remains` changes keys or values of survivors."""
        return self.victims != "drop"

    def remains(self, chunk: Chunk, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return keys before RoPE and values ``[H_kv, c', D]`` that replace the survivors', or ``None``."""
        if self.victims == "drop":
            return None
        from kvcli.eviction import matching, merging
        from kvcli.eviction.selection import gather

        if self.victims == "merge":
            return gather(chunk.k, index), merging.merge(chunk.k, chunk.v, index, chunk.state)
        return gather(chunk.k, index), matching.match(chunk, index, matching.references(chunk))

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """Return the bytes of a layer's running statistics with ``units`` kept per KV head, but for a few numbers.

        Args:
            spec: the layer's sizes.
            units: kept units.
        """
        if self.victims == "match":
            queries = max(1, MATCH_QUERIES * spec.kv_heads // spec.heads)
            return queries * (spec.heads * spec.unit_bytes // 2 + 4)
        return 4 * spec.kv_heads * units if self.victims == "merge" else 0
