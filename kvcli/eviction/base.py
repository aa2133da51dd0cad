"""The interface of an eviction policy: its view of a chunk, and the scores it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from kvcli.errors import UsageError
from kvcli.eviction.merging import MATCH_QUERIES, Victims
from kvcli.types import ModelSpec, Positions, Scorer

if TYPE_CHECKING:
    from torch import Tensor

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


class UnitView(Protocol):
    """All units of a layer, kept ones first: dense, or decoded when asked for."""

    @property
    def k(self) -> Tensor:
        """``[H_kv, u, D]`` before RoPE."""
        ...

    @property
    def v(self) -> Tensor:
        """``[H_kv, u, D]``."""
        ...

    @property
    def rotated(self) -> Tensor:
        """``[H_kv, u + probe, D]``, keys after RoPE."""
        ...


@dataclass
class Chunk:
    """One layer's view of one chunk, after the layer's attention and before eviction.

    Units are in document order: ``kept`` ones, then the chunk's ``new`` ones (``u = kept + new``). Keys and queries are
    before RoPE unless their name says otherwise.

    Attributes:
        layer: index of the layer.
        start: number of tokens read before this chunk.
        units: all units; read through ``k``, ``v`` and ``rotated``.
        new_k, new_v: ``[H_kv, new, D]``, the chunk's keys and values, never quantized. Prefer them to ``k`` and ``v``,
            which must be decoded if kept units are in codes.
        q: ``[H, new, D]``, the chunk's queries.
        pos: ``[H_kv, u]`` int32, each unit's position in the document.
        scores: ``[H_kv, kept]`` float32, the stored scores of kept units.
        state: this layer's running statistics, tensors only; the one thing a policy may write to.
        q_rotated: ``[H, new + probe, D]``, queries after RoPE.
        scale: factor on the logits.
        probe: number of last queries and keys that belong to the question, not to the text.
        heads: the model's retaining heads, for policies with ``needs_heads``.
        probe_q: ``[H, probe, D]``, the question's queries.
        compact: whether places of RoPE are slots; otherwise they are positions in the document.
        rotate: the layer's RoPE, ``(x [H, n, D], places) -> [H, n, D]``; see :class:`kvcli.types.Rotary`.
    """

    layer: int
    start: int
    units: UnitView = field(repr=False)
    new_k: Tensor
    new_v: Tensor
    q: Tensor
    pos: Tensor
    scores: Tensor
    state: dict[str, Tensor]
    q_rotated: Tensor = field(repr=False)
    scale: float
    probe: int = 0
    heads: Scorer | None = None
    probe_q: Tensor | None = None
    compact: bool = True
    rotate: Callable[[Tensor, range | Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def k(self) -> Tensor:
        """``[H_kv, u, D]``, all keys."""
        return self.units.k

    @property
    def v(self) -> Tensor:
        """``[H_kv, u, D]``, all values."""
        return self.units.v

    @property
    def rotated(self) -> tuple[Tensor, Tensor]:
        """Queries ``[H, new + probe, D]`` and keys ``[H_kv, u + probe, D]`` after RoPE."""
        return self.q_rotated, self.units.rotated

    @property
    def new(self) -> int:
        return self.q.shape[1]

    @property
    def kept(self) -> int:
        return self.scores.shape[1]

    def blocks(self, first: int, last: int, block: int = 128) -> Iterator[tuple[int, Tensor]]:
        """Recompute the logits of queries ``first .. last - 1`` of ``new + probe``, a block of queries at a time.

        Yields:
            the block's first query, and its causally masked logits ``[H_kv, H / H_kv, rows, u + probe]`` in the model's
            dtype, scaled and capped. The caller may overwrite them.
        """
        import torch

        from kvcli_kernels.attention import scaled

        q, k = self.rotated
        kv_heads, keys, dim = k.shape
        group = q.shape[0] // kv_heads
        position = torch.arange(keys, device=k.device)
        for start in range(first, last, block):
            stop = min(start + block, last)
            rows = q[:, start:stop].reshape(kv_heads, group * (stop - start), dim)
            logits = scaled((rows @ k.transpose(1, 2)).view(kv_heads, group, stop - start, keys), self.scale)
            future = position > self.kept + torch.arange(start, stop, device=k.device)[:, None]
            yield start, logits.masked_fill_(future, float("-inf"))

    def attention(self, first: int, last: int) -> Tensor:
        """Sum the attention weights that each unit gets from queries ``first .. last - 1`` of ``new + probe``.

        Post-softmax weights, summed over these queries and averaged over the query group: float32 ``[H_kv, u]``.
        """
        import torch

        mass = torch.zeros(self.pos.shape[0], self.kept + self.new + self.probe, device=self.pos.device)
        for _, logits in self.blocks(first, last):
            mass += torch.softmax(logits, dim=-1).sum(dim=(1, 2), dtype=torch.float32)
        return mass[:, : self.kept + self.new] / (self.q.shape[0] // self.pos.shape[0])
