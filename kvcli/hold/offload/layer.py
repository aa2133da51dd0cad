"""A held layer of which a few blocks at a time come to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kvcli.hold.base import Bytes, Survivors
from kvcli.hold.dense import DenseLayer
from kvcli.hold.offload.store import HostStore, Store, blocks, to_host

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


class Choice(NamedTuple):
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

    def select(self, q: Tensor, scale: float) -> Choice:
        """The blocks that rotated queries ``[H, m, D]`` want, one choice for all of them."""
        ...


@dataclass(frozen=True)
class Offloaded:
    """Everything in a store, an index over its blocks, and some units always at hand.

    Attributes:
        k, v: ``[H_kv, e, D]`` on the device, attended to by every query.
        pos: ``[H_kv, c]``.
        foreseen: queries are guessed a layer ahead (see :class:`Seer`).
    """

    store: Store
    index: Index
    k: Tensor
    v: Tensor
    pos: Tensor
    foreseen: bool = False
    window: None = None

    @property
    def nbytes(self) -> int:
        """Index, what is always at hand, and two staging buffers."""
        staged = 2 * self.index.most * self.store.block * self.k.shape[0] * self.k.shape[2] * self.k.itemsize
        return self.index.nbytes + self.store.nbytes + self.k.nbytes + self.v.nbytes + 2 * staged

    @property
    def host_nbytes(self) -> int:
        """The store's."""
        return self.store.host_nbytes

    def whole(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.hold.base.HeldLayer`."""
        return self.store.whole()

    def begin(self) -> Reader:
        """A reader with nothing staged yet."""
        return Seer(self) if self.foreseen else Reader(self)

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.hold.base.HeldLayer`."""
        return self.begin().attend(q, scale, q_start)


class Reader:
    """One tail's view of an offloaded layer: what the last step fetched is not fetched again.

    Staged blocks stand in the order of the text, so that an answer depends on what is chosen and never on what was
    there before.

    Attributes:
        hits, misses: blocks that were staged already, and that were fetched.
        chosen: the last choice.
    """

    def __init__(self, held: Offloaded) -> None:
        self.held = held
        self.hits = self.misses = 0
        self.chosen: Choice | None = None
        self._ahead: tuple[Choice, Tensor, Tensor] | None = None
        self._staged: tuple[Tensor, Tensor, Tensor] | None = None
        self._spare: tuple[Tensor, Tensor] | None = None

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.hold.base.HeldLayer`; all queries stand behind the context."""
        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge
        from kvcli_kernels.staged import staged

        if self._ahead is None:
            choice = self.held.index.select(q, scale)
            k, v = self._stage(choice.ids)
        else:
            choice, k, v = self._ahead
        self._ahead, self.chosen = None, choice
        term = staged(q, k.flatten(1, 2), v.flatten(1, 2), scale, choice.lengths)
        if self.held.k.shape[1]:
            term = merge(term, attention(q, self.held.k, self.held.v, scale, q_start))
        return term

    def _stage(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[H_kv, K, block, D]`` of blocks ``ids [H_kv, K]``."""
        import torch

        store, count = self.held.store, ids.shape[1]
        k, v = self._buffers(ids)
        wanted = ids < store.count
        missing = wanted
        if self._staged is not None and self._staged[0].shape[1]:
            old, old_k, old_v = self._staged
            at = torch.searchsorted(old, ids).clamp_(max=old.shape[1] - 1)
            hit = wanted & (old.gather(1, at) == ids)
            missing = wanted & ~hit
            heads, slots = hit.nonzero(as_tuple=True)
            k[heads, slots], v[heads, slots] = old_k[heads, at[heads, slots]], old_v[heads, at[heads, slots]]
            self.hits += len(heads)
        heads, slots = missing.nonzero(as_tuple=True)
        if len(heads):
            k[heads, slots], v[heads, slots] = store.fetch(heads, ids[heads, slots])
        self.misses += len(heads)
        self._staged = (ids, k, v)
        return k[:, :count], v[:, :count]

    def _buffers(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers that the last step did not use; of one size for ever, so that a step can be captured."""
        now = None if self._staged is None else self._staged[1:]
        if self._spare is None:
            held = self.held
            shape = (ids.shape[0], held.index.most, held.store.block, held.k.shape[2])
            self._spare = (held.k.new_zeros(shape), held.k.new_zeros(shape))
        spare, self._spare = self._spare, now
        return spare


class Seer(Reader):
    """A reader that chooses and fetches for a guess of its queries, where there is one."""

    def foresee(self, q: Tensor, scale: float) -> None:
        """See :class:`kvcli.hold.base.Foreseeing`."""
        choice = self.held.index.select(q, scale)
        self._ahead = (choice, *self._stage(choice.ids))


def resident(survivors: Survivors) -> DenseLayer:
    """All of a layer on the device: windows, first layers, documents within the budget."""
    k = survivors.k
    return DenseLayer(k, survivors.v.to(k.device), survivors.pos, survivors.window)


def offload(
    survivors: Survivors,
    index: Callable[[Tensor], Index],
    *,
    block: int,
    first: int = 0,
    last: int = 0,
    foreseen: bool = False,
) -> Offloaded:
    """A layer in host memory, but for its ``first`` and at least ``last`` units and what does not fill a block.

    Args:
        survivors: of a layer without a window.
        index: makes one from the rotated keys ``[H_kv, N, block, D]`` of all blocks.
        block: units per block.
        first, last: units always at hand.
        foreseen: as for :class:`Offloaded`.
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
        foreseen,
    )


def footprint(spec: ModelSpec, units: int, *, index: int, staged: int, exact: int) -> Bytes:
    """What such a layer takes: ``index`` in numbers of the model's dtype per KV head, the others in units of one."""
    number = spec.unit_bytes // (2 * spec.head_dim)
    device = spec.kv_heads * (index * number + (2 * staged + exact) * spec.unit_bytes)
    return Bytes(device, spec.kv_heads * units * spec.unit_bytes)
