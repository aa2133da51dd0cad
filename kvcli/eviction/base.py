"""The interface of a keep policy: what it is told of a chunk, and the scores it answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from kvcli.errors import UsageError
from kvcli.eviction.merging import Victims
from kvcli.types import Positions, Scorer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EvictionPolicy:
    """A scorer with a budget; a frozen dataclass whose fields are its hyper-parameters.

    Args:
        budget: units each KV head of each layer keeps while a document is read; ``None`` keeps all.
        stabilizers: newest units kept after every chunk but the last, whatever their score; their stored score
            stays their own. ``None`` is a quarter of the budget.
        sinks: first tokens of the text that are always kept; they count against the budget.
        tail: last tokens of the text that are read after the last eviction and kept on top of the budget.
        positions: how kept units are numbered for RoPE (see :data:`kvcli.types.Positions`).
        pyramid: how unevenly the layers share the budget: the first keeps ``1 + pyramid`` of it, the last
            ``1 - pyramid``, those between fall linearly. 0.95 is PyramidKV's (Cai et al. 2024, arXiv 2406.02069).
        victims: what becomes of evicted units: ``drop``, or ``merge`` into the most similar survivor's value.
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
    """A token's score never depends on tokens beyond the next ``lookahead``, and is final once they are read."""

    query_aware: ClassVar[bool] = False
    """The reading depends on the question: its tokens follow each chunk as a probe."""

    needs_heads: ClassVar[bool] = False
    """Scores come from the model's retaining heads, without which the policy cannot run."""

    observers: ClassVar[int] = 0
    """Queries, 128 at most, whose attention is computed again at a time to score with; the plan counts their logits."""

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
        """Budget of one of ``layers`` layers, in units per KV head; ``None`` keeps all.

        The budgets sum to ``layers`` times the budget, but for rounding. A layer gets at least what is protected; the
        excess is taken from the other layers in proportion to their shares.
        """
        if self.budget is None or not self.pyramid or layers < 2:
            return self.budget
        shares = [1 + self.pyramid * (1 - 2 * i / (layers - 1)) for i in range(layers)]
        floor = max(1, self.protected)
        free = layers  # shares fall, so the layers at the floor are the last ones
        while True:
            scale = (layers * self.budget - (layers - free) * floor) / sum(shares[:free])
            above = sum(scale * share >= floor for share in shares[:free])
            if above == free or not above:
                break
            free = above
        return round(scale * shares[layer]) if layer < free and above else floor

    @property
    def newest(self) -> int:
        """Newest units that are kept after every chunk, the last one included."""
        return 0

    @property
    def protected(self) -> int:
        """Units that are kept whatever their score: sinks and the newest ones."""
        return self.sinks + max(self.recent, self.newest)

    @property
    def lookahead(self) -> int:
        """How many later tokens take part in a causal score."""
        return 0

    @property
    def recent(self) -> int:
        """Stabilizers in force."""
        if self.stabilizers is not None:
            return self.stabilizers
        return 0 if self.budget is None else self.budget // 4

    def score(self, chunk: Chunk) -> Tensor:  # noqa: ARG002
        """Scores of the chunk's own units, higher is kept: float ``[H_kv, new]``. A function of tensors."""
        raise TypeError(f"the policy '{self.name}' defines neither score() nor rescore()")

    def rescore(self, chunk: Chunk) -> Tensor:
        """Scores of all units at hand, kept ones first: float32 ``[H_kv, kept + new]``.

        A causal policy leaves this alone: kept units carry the score they were given once.
        """
        import torch

        return torch.cat([chunk.scores, self.score(chunk).float()], dim=1)


class UnitView(Protocol):
    """All units that a layer has at hand, the kept ones first: exact, or what their codes mean, made when asked for."""

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

    Units are in document order, the ``kept`` ones first and the ``new`` ones of this chunk behind them
    (``u = kept + new``). Keys and queries are before RoPE unless a name says otherwise.

    Attributes:
        layer: index of the layer.
        start: number of tokens read before this chunk.
        units: all of them; read through ``k``, ``v`` and ``rotated``.
        new_k, new_v: ``[H_kv, new, D]``, the chunk's own, always exact. A policy that needs no others should use these:
            where kept units lie in codes, ``k`` and ``v`` have to be made.
        q: ``[H, new, D]``, the chunk's own queries.
        pos: ``[H_kv, u]`` int32, each unit's place in the document.
        scores: ``[H_kv, kept]`` float32, the stored scores of kept units.
        state: this layer's running statistics; the one thing a policy may write to. Tensors only.
        q_rotated: ``[H, new + probe, D]``, queries after RoPE.
        scale: factor on the logits of their attention.
        probe: how many of the last queries and keys belong to the question and not to the text.
        heads: the model's retaining heads; there for policies that are ``trained``.
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

    def attention(self, first: int, last: int, block: int = 128) -> Tensor:
        """Attention mass that each unit gets from queries ``first .. last - 1`` of ``new + probe``.

        Post-softmax weights, summed over these queries and averaged over the query group, computed again in blocks
        so that no more than ``[H, block, u + probe]`` exists at a time: float32 ``[H_kv, u]``.
        """
        import torch

        q, k = self.rotated
        kv_heads, keys, dim = k.shape
        group = q.shape[0] // kv_heads
        place = torch.arange(keys, device=k.device)
        mass = torch.zeros(kv_heads, keys, dtype=torch.float32, device=k.device)
        for start in range(first, last, block):
            stop = min(start + block, last)
            rows = q[:, start:stop].reshape(kv_heads, group * (stop - start), dim)
            logits = (rows @ k.transpose(1, 2)).view(kv_heads, group, stop - start, keys) * self.scale
            future = place > self.kept + torch.arange(start, stop, device=k.device)[:, None]
            weights = torch.softmax(logits.masked_fill_(future, float("-inf")), dim=-1)
            mass += weights.sum(dim=(1, 2), dtype=torch.float32)
        return mass[:, : self.kept + self.new] / group
