"""Units fetched one by one, guessed a layer ahead (Lee et al. 2024, OSDI, arXiv 2406.19707).

What a layer will look at is guessed from the attention input of the layer before it, with a few columns of queries and
keys. An orthogonal matrix can turn both so that few columns say most; it changes no product. It comes from the second
moment of a model's queries: over a book, once per model, as in the paper (``kvcli calibrate``), or over the text that
is read, summed on the way. Unturned, the columns are those that the text's own queries and keys are largest in, and for
the default model they guess best (docs/results).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from kvcli.storage.base import KeptUnits, KVStorage, StorageBytes, StoredLayer
from kvcli.storage.offload.checks import at_least
from kvcli.storage.offload.host_eviction import EvictionOrder, worth
from kvcli.storage.offload.layer import Selection, footprint, keep_on_device, offload

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

QUERIES = "infinigen.queries"
SQUARES = "infinigen.squares"
_LAST = 32  # queries of a chunk that say what they want of a pool


@dataclass(frozen=True, kw_only=True)
class InfiniGen(KVStorage):
    """Keeps all units in host memory and attends to those that a guess from the layer before says matter.

    Args:
        partial: share of the columns of queries and keys that the guess is made with.
        alpha: a unit matters when its guessed logit is less than this below the largest one.
        cap: most units that matter, as a share of all.
        skew: where the columns come from: ``file`` turns them by queries over another text (``kvcli calibrate``),
            ``text`` by the text's own, ``none`` leaves them; ``auto`` is ``file`` where there is one, else ``none``.
        dense: first layers that stay on the device as they are.
        least: up to this many units stay on the device as they are.
        pool: most units per KV head of a layer in host memory, with ``full``; without it, all.
        victims: which of them make room for the next: ``counter`` the one wanted least often, ``lru`` the one not
            wanted for longest, ``fifo`` the oldest; never one of the newer half of the pool.
    """

    partial: float = 0.3
    alpha: float = 5.0
    cap: float = 0.2
    skew: Literal["auto", "file", "text", "none"] = "auto"
    dense: int = 2
    least: int = 64
    pool: int | None = None
    victims: EvictionOrder = "counter"

    name: ClassVar[str] = "infinigen"
    offloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, partial=0, alpha=0, cap=0, dense=0, least=0)
        if self.pool is not None:
            at_least(self, pool=1)

    @property
    def calibrated(self) -> Literal["never", "may", "must"]:
        """See :class:`kvcli.storage.base.KVStorage`."""
        return {"file": "must", "auto": "may"}.get(self.skew, "never")  # type: ignore[return-value]

    @property
    def affects_prefill(self) -> bool:
        """With a file nothing is gathered."""
        return self.skew != "file" or self.limit is not None

    @property
    def limit(self) -> int | None:
        """See :class:`kvcli.storage.base.KVStorage`."""
        return self.pool

    def worth(self, scores: Tensor, q: Tensor, k: Tensor, pos: Tensor, scale: float) -> Tensor:
        """What the chunk's last queries would fetch of what stands before them is wanted."""
        import torch

        (kv_heads, n, dim), last = k.shape, min(_LAST, q.shape[1])
        wanted = torch.zeros(kv_heads, n + 1, dtype=torch.bool, device=k.device)
        if self.victims != "fifo" and n > last:
            turn = torch.eye(dim, dtype=k.dtype, device=k.device).expand(kv_heads, -1, -1)
            index = PartialKeys(k[:, : n - last], turn, self.alpha, self._most(n - last))
            ids, lengths = index.select(q[:, -last:], scale)
            assert lengths is not None
            used = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            wanted.scatter_(1, ids.masked_fill(~used, n), True)
        return worth(self.victims, scores, wanted[:, :n], pos)

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Partial keys, and as many units as the cap allows of this layer and the next."""
        if self._fits(layer, units):
            return super().size(spec, layer, units)
        columns = self._columns(spec.head_dim)
        index = columns * (units + spec.head_dim)
        return footprint(spec, units, index=index, staged=self._most(units), exact=0, predicted=True)

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        """Sums the second moment of queries, float32 ``[H, D, D]``, or its diagonal ``[H, D]``."""
        del start
        if layer < self.dense or self.skew == "file":
            return
        q = q.float()
        name, new = (QUERIES, q.transpose(1, 2) @ q) if self.skew == "text" else (SQUARES, q.square().sum(1))
        state[name] = state[name] + new if name in state else new

    def observed_nbytes(self, spec: ModelSpec, layer: int, tokens: int) -> int:
        """The second moment, or its diagonal."""
        del tokens
        if layer < self.dense or self.skew == "file":
            return 0
        return 4 * spec.heads * spec.head_dim ** (2 if self.skew == "text" else 1)

    def freeze(self, survivors: KeptUnits) -> StoredLayer:
        """The columns of turned keys that weigh most go to the index."""
        if survivors.window is not None or self._fits(survivors.layer, survivors.k.shape[1]):
            return keep_on_device(survivors)
        n = survivors.k.shape[1]

        def index(keys: Tensor) -> PartialKeys:
            keys = keys[:, :, 0]
            turn = self._turn(survivors.state, survivors.calibration, keys)
            return PartialKeys((keys.float() @ turn).to(keys.dtype), turn.to(keys.dtype), self.alpha, self._most(n))

        return offload(survivors, index, block=1, predicted=True)

    def _turn(self, state: dict[str, Tensor], calibration: Tensor | None, keys: Tensor) -> Tensor:
        """The heaviest columns of an orthogonal matrix: float32 ``[H_kv, D, columns]``."""
        import torch

        kv_heads, _, dim = keys.shape
        moment = state.get(QUERIES) if self.skew == "text" else None if self.skew == "none" else calibration
        if moment is None:
            squares = state.get(SQUARES, torch.ones(kv_heads, dim, device=keys.device))
            grams = torch.diag_embed(squares.view(kv_heads, -1, dim).sum(1))
            turn = torch.eye(dim, device=keys.device).expand(kv_heads, -1, -1)
        else:
            grams = moment.view(kv_heads, -1, dim, dim).sum(1)
            turn = skew(grams)
        loud = (turn * (grams @ turn)).sum(1).clamp(min=0) * (keys.float() @ turn).square().sum(1)
        best = loud.topk(self._columns(dim), dim=-1).indices
        return turn.gather(2, best.unsqueeze(1).expand(-1, dim, -1))

    def _columns(self, dim: int) -> int:
        return min(dim, max(1, math.ceil(self.partial * dim)))

    def _most(self, units: int) -> int:
        return min(units, max(1, math.ceil(self.cap * units)))

    def _fits(self, layer: int, units: int) -> bool:
        return layer < self.dense or units <= self.least


def skew(grams: Tensor) -> Tensor:
    """Right singular vectors of queries from their second moment ``[H_kv, D, D]``: orthogonal, heaviest last."""
    import torch

    turn: Tensor = torch.linalg.eigh(grams.double()).eigenvectors
    return turn.float()


@dataclass(frozen=True)
class PartialKeys:
    """A few columns of turned keys.

    Attributes:
        keys: ``[H_kv, n, columns]``.
        turn: ``[H_kv, D, columns]``, what queries are turned with.
        alpha, most: as for :class:`InfiniGen`, ``most`` in units.
    """

    keys: Tensor
    turn: Tensor
    alpha: float
    most: int

    @property
    def nbytes(self) -> int:
        """Partial keys and the columns that queries are turned with."""
        return self.keys.nbytes + self.turn.nbytes

    def select(self, q: Tensor, scale: float) -> Selection:
        """See :class:`kvcli.storage.offload.layer.Index`: each head its own count, each query its own largest logit."""
        import torch

        kv_heads, n, _ = self.keys.shape
        rows = q.reshape(kv_heads, -1, q.shape[2]) @ self.turn
        margin = torch.full((kv_heads, n), float("-inf"), device=q.device)
        for part in torch.split(rows, 64, dim=1):
            logits = (part @ self.keys.transpose(1, 2)).float() * scale
            margin = torch.maximum(margin, (logits - logits.amax(-1, keepdim=True)).amax(1))
        lengths = (margin >= -self.alpha).sum(1).clamp(max=self.most)
        ids = margin.topk(self.most, dim=-1).indices
        unused = torch.arange(self.most, device=q.device) >= lengths[:, None]
        return Selection(ids.masked_fill(unused, n).sort(dim=-1).values, lengths)
