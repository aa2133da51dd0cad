"""A stored layer in host memory, of which a few blocks at a time are fetched to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kvcli.storage.base import KeptUnits, Staging, StorageBytes
from kvcli.storage.dense import DenseLayer
from kvcli.storage.offload.host_store import BlockStore, HostStore, blocks, to_host

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


class Selection(NamedTuple):
    """Selected blocks: int64 ``[H_kv, K]``, ascending, of which the first ``lengths [H_kv]`` are valid.

    ``lengths = None``: all are valid. Invalid entries equal the store's ``count``.
    """

    ids: Tensor
    lengths: Tensor | None = None


class Index(Protocol):
    """An index of a layer's blocks, on the device."""

    @property
    def nbytes(self) -> int: ...

    @property
    def max_blocks(self) -> int:
        """Maximum number of blocks per KV head in a selection."""
        ...

    def select(self, q: Tensor, scale: float) -> Selection:
        """Select blocks for rotated queries ``[H, m, D]``: one selection for all of them."""
        ...


@dataclass(frozen=True)
class Offloaded:
    """A store, an index over its blocks, and some units that stay on the device.

    Attributes:
        k, v: ``[H_kv, e, D]`` on the device, attended to by every query.
        pos: ``[H_kv, c]``.
        predicted: whether queries are predicted a layer ahead (see :class:`PrefetchingReader`).
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
        """Bytes of the index, of resident units, and of blocks that stay staged between steps."""
        staged = 0 if self.predicted else self._staged
        return self.index.nbytes + self.store.nbytes + self.k.nbytes + self.v.nbytes + staged

    @property
    def shared_nbytes(self) -> int:
        """Bytes of fetched blocks: with prefetching, those of two layers."""
        return self._staged * (2 if self.predicted else 1)

    @property
    def _staged(self) -> int:
        return 2 * self.index.max_blocks * self.store.block * self.k.shape[0] * self.k.shape[2] * self.k.itemsize

    @property
    def host_nbytes(self) -> int:
        return self.store.host_nbytes

    @property
    def selects(self) -> bool:
        return True

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels.backend import on_triton

        if self.k.is_cuda and not on_triton(self.k):
            return "without triton the host must know which blocks to fetch"
        return self.store.dynamic_reason

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return self.store.dense()

    def open(self, staging: Staging | None = None) -> BlockReader:
        """Open a reader with nothing staged."""
        kind = PrefetchingReader if self.predicted else BlockReader
        return kind(self, Staging() if staging is None else staging)

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        return self.open().attend(q, scale, q_start)


class BlockReader:
    """One decode cache's reader of an offloaded layer; it does not fetch again what the last step fetched.

    Staged blocks are in document order, so that results depend on the selection alone, never on earlier steps. Buffers
    never move or resize and contain all state between steps, so that a CUDA graph can capture a step.

    Attributes:
        last_selection: the selection of the last step.
    """

    def __init__(self, layer: Offloaded, staging: Staging) -> None:
        import torch

        self.layer, self.staging = layer, staging
        self.last_selection: Selection | None = None
        self._shape = (layer.k.shape[0], layer.index.max_blocks, layer.store.block, layer.k.shape[2])
        self._reader_id = staging.register(*self._shape)
        self._counts = torch.zeros(2, dtype=torch.long, device=layer.k.device)

    @cached_property
    def _staged(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last step's selection and its blocks; allocated at first use, then updated in place."""
        ids = self._counts.new_full(self._shape[:2], self.layer.store.count)
        return ids, self.layer.k.new_zeros(self._shape), self.layer.k.new_zeros(self._shape)

    @property
    def hits(self) -> int:
        """Number of blocks that were staged already, including warm-up steps of a CUDA graph."""
        return int(self._counts[0])

    @property
    def misses(self) -> int:
        """Number of fetched blocks."""
        return int(self._counts[1])

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """Attend to selected and resident units; see :class:`kvcli.storage.base.StoredLayer`. Queries follow the
        context."""
        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge
        from kvcli_kernels.varlen import varlen_attention

        selection, k, v = self._fetch_selected(q, scale)
        self.last_selection = selection
        term = varlen_attention(q, k.flatten(1, 2), v.flatten(1, 2), scale, selection.lengths)
        if self.layer.k.shape[1]:
            term = merge(term, attention(q, self.layer.k, self.layer.v, scale, q_start))
        return term

    def _fetch_selected(self, q: Tensor, scale: float) -> tuple[Selection, Tensor, Tensor]:
        """Select blocks for queries; return them with their keys and values ``[H_kv, K, block, D]``."""
        selection, (ids, k, v) = self.layer.index.select(q, scale), self._staged
        new_k, new_v = (self.staging.buffer(name, k, *self._shape) for name in ("k0", "v0"))
        self._fetch_blocks(selection.ids, self._slots(ids, selection.ids), (k, v), (new_k, new_v))
        ids.fill_(self.layer.store.count)  # an interruption from here on leaves nothing staged
        k.copy_(new_k)
        v.copy_(new_v)
        ids.copy_(selection.ids)
        return selection, k, v

    def _slots(self, old: Tensor, ids: Tensor) -> Tensor:
        """Return the staging slots of blocks, -1 for those not staged."""
        import torch

        slots = torch.searchsorted(old, ids).clamp_(max=old.shape[1] - 1)
        return slots.masked_fill((ids == self.layer.store.count) | (old.gather(1, slots) != ids), -1)

    def _fetch_blocks(
        self, ids: Tensor, slots: Tensor, staged: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]
    ) -> None:
        import torch

        hits = slots >= 0
        self._counts += torch.stack([hits.sum(), ((ids < self.layer.store.count) & ~hits).sum()])
        self.layer.store.fetch(ids, slots, staged, out, self.staging.copy_stream(ids))


class PrefetchingReader(BlockReader):
    """A reader that selects and fetches for predicted queries, if there are any.

    Two buffers alternate between layers: one is attended to while the next layer's blocks arrive in the other. Nothing
    stays staged between steps.
    """

    def __init__(self, layer: Offloaded, staging: Staging) -> None:
        super().__init__(layer, staging)
        self._prefetched: tuple[tuple[Selection, Tensor, Tensor], Any, Tensor] | None = None

    def prefetch(self, q: Tensor, scale: float) -> None:
        """See :class:`kvcli.storage.base.Prefetching`."""
        copy_stream = self.staging.copy_stream(q)
        with copy_stream.run():
            fetched = self._fetch(q, scale)
        self._prefetched = fetched, copy_stream.mark(), q  # the copy stream reads q, so q must live until the join

    def _fetch_selected(self, q: Tensor, scale: float) -> tuple[Selection, Tensor, Tensor]:
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is None:
            return self._fetch(q, scale)
        fetched, mark, _ = prefetched
        self.staging.copy_stream(q).join(mark)
        return fetched

    def _fetch(self, q: Tensor, scale: float) -> tuple[Selection, Tensor, Tensor]:
        selection, buffer_index = self.layer.index.select(q, scale), self._reader_id % 2
        k, v = (self.staging.buffer(f"{name}{buffer_index}", self.layer.k, *self._shape) for name in "kv")
        self._fetch_blocks(selection.ids, selection.ids.new_full(selection.ids.shape, -1), (k, v), (k, v))
        return selection, k, v


def keep_on_device(kept: KeptUnits) -> DenseLayer:
    """Store a layer densely: sliding windows, first layers, documents within the budget."""
    k = kept.k
    return DenseLayer(k, kept.v.to(k.device), kept.pos, kept.window)


def offload(
    kept: KeptUnits,
    index: Callable[[Tensor], Index],
    *,
    block: int,
    first: int = 0,
    last: int = 0,
    predicted: bool = False,
) -> Offloaded:
    """Offload a layer, except ``first`` units, at least ``last`` units, and the remainder of a block.

    Args:
        kept: units of a layer without a window.
        index: builds an index from the rotated keys ``[H_kv, N, block, D]`` of all blocks.
        block: units per block.
        first, last: units that stay on the device.
        predicted: as for :class:`Offloaded`.
    """
    import torch

    k, v, n = kept.k, kept.v, kept.k.shape[1]
    count = max(0, n - first - last) // block
    outside = torch.cat([torch.arange(first), torch.arange(first + count * block, n)]).to(k.device)
    store = HostStore(to_host(k, k.device), to_host(v, k.device), k.device, block, first, count)
    return Offloaded(
        store,
        index(blocks(k, first, count, block)),
        k[:, outside],
        v[:, outside.to(v.device)].to(k.device),
        kept.pos,
        predicted,
    )


def footprint(
    spec: ModelSpec, units: int, *, index: int, staged: int, exact: int, predicted: bool = False
) -> StorageBytes:
    """Return the bytes of an offloaded layer: ``index`` in numbers per KV head, the other arguments in units of one."""
    number_bytes = spec.unit_bytes // (2 * spec.head_dim)
    unit_bytes = spec.kv_heads * spec.unit_bytes
    staged_here, shared = (0, 2 * staged) if predicted else (staged, staged)
    return StorageBytes(
        spec.kv_heads * index * number_bytes + (staged_here + exact) * unit_bytes,
        units * unit_bytes,
        shared * unit_bytes,
    )
