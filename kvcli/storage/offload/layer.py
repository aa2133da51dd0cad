"""A held layer of which a few blocks at a time come to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kvcli.storage.base import KeptUnits, StorageBytes
from kvcli.storage.dense import DenseLayer
from kvcli.storage.offload.host_store import BlockStore, HostStore, blocks, to_host
from kvcli.storage.staging import Staging

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


class Selection(NamedTuple):
    """Blocks that queries want: int64 ``[H_kv, K]``, ascending, of which the first ``lengths [H_kv]`` count.

    ``lengths = None`` is all of them; what does not count is numbered ``Store.count``.
    """

    ids: Tensor
    lengths: Tensor | None = None


class Index(Protocol):
    """What is known of a layer's blocks on the device."""

    @property
    def nbytes(self) -> int: ...

    @property
    def most(self) -> int:
        """The most blocks that it ever chooses per KV head."""
        ...

    def select(self, q: Tensor, scale: float) -> Selection:
        """The blocks that rotated queries ``[H, m, D]`` want, one choice for all of them."""
        ...


@dataclass(frozen=True)
class Offloaded:
    """Everything in a store, an index over its blocks, and some units always at hand.

    Attributes:
        k, v: ``[H_kv, e, D]`` on the device, attended to by every query.
        pos: ``[H_kv, c]``.
        predicted: queries are guessed a layer ahead (see :class:`PrefetchingReader`).
    """

    store: BlockStore
    index: Index
    k: Tensor
    v: Tensor
    pos: Tensor
    predicted: bool = False
    window: None = None

    @property
    def nbytes(self) -> int:
        """Index, what is always at hand, and what stays staged between steps."""
        staged = 0 if self.predicted else self._staged
        return self.index.nbytes + self.store.nbytes + self.k.nbytes + self.v.nbytes + staged

    @property
    def shared_nbytes(self) -> int:
        """What is on its way: where it is fetched ahead, that of this layer and of the one before it."""
        return self._staged * (2 if self.predicted else 1)

    @property
    def _staged(self) -> int:
        return 2 * self.index.most * self.store.block * self.k.shape[0] * self.k.shape[2] * self.k.itemsize

    @property
    def host_nbytes(self) -> int:
        return self.store.host_nbytes

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels.backend import on_triton

        if self.k.is_cuda and not on_triton(self.k):
            return "without triton the host must know which blocks are fetched"
        return self.store.dynamic_reason

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return self.store.dense()

    def begin(self, staging: Staging | None = None) -> BlockReader:
        """A reader with nothing staged yet."""
        kind = PrefetchingReader if self.predicted else BlockReader
        return kind(self, Staging() if staging is None else staging)

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return self.begin().attend(q, scale, q_start)


class BlockReader:
    """One tail's view of an offloaded layer: what the last step fetched is not fetched again.

    Staged blocks stand in the order of the text, so that an answer depends on what is chosen and never on what was
    there before. Buffers neither move nor change size, and what a step leaves for the next is in them and nowhere else,
    so that a step can be captured.

    Attributes:
        chosen: the last choice.
    """

    def __init__(self, held: Offloaded, staging: Staging) -> None:
        import torch

        self.held, self.staging = held, staging
        self.chosen: Selection | None = None
        self._shape = (held.k.shape[0], held.index.most, held.store.block, held.k.shape[2])
        self._number = staging.join(*self._shape)
        self._counts = torch.zeros(2, dtype=torch.long, device=held.k.device)

    @cached_property
    def _staged(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the last step chose, and its blocks; made when first used, written to in place from then on."""
        ids = self._counts.new_full(self._shape[:2], self.held.store.count)
        return ids, self.held.k.new_zeros(self._shape), self.held.k.new_zeros(self._shape)

    @property
    def hits(self) -> int:
        """Blocks that were staged already; those of the steps that warm a recording up are counted, too."""
        return int(self._counts[0])

    @property
    def misses(self) -> int:
        """Blocks that were fetched."""
        return int(self._counts[1])

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`; all queries stand behind the context."""
        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge
        from kvcli_kernels.varlen import varlen_attention

        choice, k, v = self._at_hand(q, scale)
        self.chosen = choice
        term = varlen_attention(q, k.flatten(1, 2), v.flatten(1, 2), scale, choice.lengths)
        if self.held.k.shape[1]:
            term = merge(term, attention(q, self.held.k, self.held.v, scale, q_start))
        return term

    def _at_hand(self, q: Tensor, scale: float) -> tuple[Selection, Tensor, Tensor]:
        """What queries want, and its keys and values ``[H_kv, K, block, D]``."""
        choice, (ids, k, v) = self.held.index.select(q, scale), self._staged
        new_k, new_v = (self.staging.take(name, k, *self._shape) for name in ("k0", "v0"))
        self._bring(choice.ids, self._slots(ids, choice.ids), (k, v), (new_k, new_v))
        ids.fill_(self.held.store.count)  # whoever is interrupted from here on has nothing staged
        k.copy_(new_k)
        v.copy_(new_v)
        ids.copy_(choice.ids)
        return choice, k, v

    def _slots(self, old: Tensor, ids: Tensor) -> Tensor:
        """Where blocks are staged, -1 for those that are not."""
        import torch

        at = torch.searchsorted(old, ids).clamp_(max=old.shape[1] - 1)
        return at.masked_fill((ids == self.held.store.count) | (old.gather(1, at) != ids), -1)

    def _bring(self, ids: Tensor, slots: Tensor, staged: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]) -> None:
        import torch

        hits = slots >= 0
        self._counts += torch.stack([hits.sum(), ((ids < self.held.store.count) & ~hits).sum()])
        self.held.store.fetch(ids, slots, staged, out, self.staging.aside(ids))


class PrefetchingReader(BlockReader):
    """A reader that chooses and fetches for a guess of its queries, where there is one.

    Layers take turns with two buffers: one is attended to while the other is filled for the layer that follows. So
    nothing stays staged from step to step.
    """

    def __init__(self, held: Offloaded, staging: Staging) -> None:
        super().__init__(held, staging)
        self._ahead: tuple[tuple[Selection, Tensor, Tensor], Any, Tensor] | None = None

    def prefetch(self, q: Tensor, scale: float) -> None:
        """See :class:`kvcli.storage.base.Prefetching`."""
        aside = self.staging.aside(q)
        with aside.run():
            fetched = self._fetch(q, scale)
        self._ahead = fetched, aside.mark(), q  # which is read aside, and lives until then

    def _at_hand(self, q: Tensor, scale: float) -> tuple[Selection, Tensor, Tensor]:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._fetch(q, scale)
        fetched, mark, _ = ahead
        self.staging.aside(q).join(mark)
        return fetched

    def _fetch(self, q: Tensor, scale: float) -> tuple[Selection, Tensor, Tensor]:
        choice, turn = self.held.index.select(q, scale), self._number % 2
        k, v = (self.staging.take(f"{name}{turn}", self.held.k, *self._shape) for name in "kv")
        self._bring(choice.ids, choice.ids.new_full(choice.ids.shape, -1), (k, v), (k, v))
        return choice, k, v


def keep_on_device(survivors: KeptUnits) -> DenseLayer:
    """All of a layer on the device: windows, first layers, documents within the budget."""
    k = survivors.k
    return DenseLayer(k, survivors.v.to(k.device), survivors.pos, survivors.window)


def offload(
    survivors: KeptUnits,
    index: Callable[[Tensor], Index],
    *,
    block: int,
    first: int = 0,
    last: int = 0,
    predicted: bool = False,
) -> Offloaded:
    """A layer in host memory, but for its ``first`` and at least ``last`` units and what does not fill a block.

    Args:
        survivors: of a layer without a window.
        index: makes one from the rotated keys ``[H_kv, N, block, D]`` of all blocks.
        block: units per block.
        first, last: units always at hand.
        predicted: as for :class:`Offloaded`.
    """
    import torch

    k, v, n = survivors.k, survivors.v, survivors.k.shape[1]
    count = max(0, n - first - last) // block
    outside = torch.cat([torch.arange(first), torch.arange(first + count * block, n)]).to(k.device)
    store = HostStore(to_host(k, k.device), to_host(v, k.device), k.device, block, first, count)
    return Offloaded(
        store,
        index(blocks(k, first, count, block)),
        k[:, outside],
        v[:, outside.to(v.device)].to(k.device),
        survivors.pos,
        predicted,
    )


def footprint(
    spec: ModelSpec, units: int, *, index: int, staged: int, exact: int, predicted: bool = False
) -> StorageBytes:
    """What such a layer takes: ``index`` in numbers of the model's dtype per KV head, the others in units of one."""
    number = spec.unit_bytes // (2 * spec.head_dim)
    one = spec.kv_heads * spec.unit_bytes
    own, shared = (0, 2 * staged) if predicted else (staged, staged)
    return StorageBytes(spec.kv_heads * index * number + (own + exact) * one, units * one, shared * one)
