"""The prefill cache: a bounded set of units that prefill updates chunk by chunk.

For every layer and chunk: attend to ``kept ‖ chunk``, score, select, compact. A layer evicts right after its attention,
so the peak is all layers' budgets plus one chunk of one layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from weakref import proxy

import torch
from torch import Tensor

from kvcli.cache.base import State, with_sink
from kvcli.cache.folded import fold, of_fold
from kvcli.cache.units import DenseUnits, QuantizedUnits
from kvcli.cache.workspace import Workspace
from kvcli.errors import ModelError
from kvcli.eviction.base import SURPRISE, Chunk, EvictionPolicy
from kvcli.eviction.selection import gather, select
from kvcli.fold.base import Folding
from kvcli.share.base import LayerSharing
from kvcli.sparse_prefill.base import ChunkAttention
from kvcli.storage.base import Basis, KVStorage
from kvcli.storage.row_layer import RowLayer
from kvcli.types import ModelSpec, Rotary, Scorer
from kvcli_kernels.attention import attention, causal_attention
from kvcli_kernels.compact import Units, compact
from kvcli_kernels.merge import merge as merge_terms


@dataclass
class ChunkStep:
    """The current chunk, the same for all layers.

    Attributes:
        start: tokens read before it.
        new: its length.
        probe: number of question tokens after it; they attend, help to score and are dropped.
        last: whether it is the last chunk of the body, so that stabilizers do not apply.
        evict: whether units may be evicted; not in the protected tail of a document.
        part: what a forward pass has of the chunk. The state of recurrent layers must not see the question. So such
            models read the text first, and then the question with a copy of the state; layers evict after that.
    """

    start: int = 0
    new: int = 0
    probe: int = 0
    last: bool = False
    evict: bool = True
    part: Literal["all", "text", "question"] = "all"


class PrefillCache:
    """The kept units of all layers during prefill.

    Args:
        spec: the model's sizes.
        policy: the eviction policy.
        rotary: the model's RoPE.
        tokens: length of the document; buffers never exceed it.
        chunk: longest chunk, probe included.
        dtype, device: of keys and values; over several GPUs each layer's are on its own.
        heads: the model's retaining heads, for policies that need them.
        storage: the later KV storage. If it offloads, keys and values are in host memory already here, pinned for a
            GPU. Each layer's are copied to the workspace while the previous layer computes.
        calibration: per layer the second moment of the model's queries, float32 ``[H, D, D]``, for storages that use
            it.
        basis: computes a layer's :class:`kvcli.storage.base.Basis`, for storages that use it.
        state: an empty state, for models with recurrent layers.
        share: which layers use the units of another layer, or keep the same; by default as in the model.
        sparse: which keys a chunk attends to; by default all.
        folding: what remembers evicted units; by default nothing.
    """

    def __init__(
        self,
        spec: ModelSpec,
        policy: EvictionPolicy,
        rotary: Rotary,
        *,
        tokens: int,
        chunk: int,
        dtype: torch.dtype,
        device: torch.device,
        heads: Scorer | None = None,
        storage: KVStorage | None = None,
        calibration: dict[int, Tensor] | None = None,
        basis: Callable[[int], Basis] | None = None,
        state: State | None = None,
        share: LayerSharing | None = None,
        sparse: ChunkAttention | None = None,
        folding: Folding | None = None,
    ) -> None:
        self.folding = folding
        self.sparse = sparse
        self.share = share or LayerSharing()
        self.owners, self.leaders = self.share.owners(spec), self.share.leaders(spec)
        self.last_users = {owner: i for i, owner in enumerate(self.owners) if owner != i}
        self.spec, self.policy, self.rotary, self.heads, self.storage = spec, policy, rotary, heads, storage
        self.calibration, self.basis, self.dtype, self.state = calibration or {}, basis, dtype, state
        self.step = ChunkStep()
        self.seen = 0
        self.draft = False
        self.max_position: int | None = None
        self.limit = None if storage is None else storage.limit
        self.row_codec = None if storage is None else storage.row_codec
        self.budgets = [policy.units(i, spec.layers) if self.limit is None else self.limit for i in self.leaders]
        self._layers = [
            PrefillCacheLayer(proxy(self), i, window, self._capacity(i, tokens), dtype, spec.device_of(i, device))
            for i, window in enumerate(spec.sliding)
        ]
        devices = dict.fromkeys(layer.device for layer in self._layers)
        host = storage is not None and storage.offloads
        self.workspace = Workspace.make(self._workspace_numbers(chunk), dtype, devices, host=host)

    @property
    def layers(self) -> Sequence[PrefillCacheLayer]:
        return self._layers

    def begin_passes(self, tokens: int) -> None:
        """See :class:`kvcli.cache.base.DraftedCache`."""
        for layer in self._layers:
            if layer.shared_with_lower:
                layer.ahead = layer.blank(tokens)

    @property
    def kept(self) -> int:
        """Units per KV head of the layer that keeps most."""
        return max(layer.count for layer in self._layers)

    def position_ids(self, count: int) -> Tensor:
        """See :class:`kvcli.cache.base.KVCache`."""
        start = self.step.start + (self.step.new if self.step.part == "question" else 0)
        return torch.arange(start, start + count, device=self._layers[0].device)

    def take_state(self) -> State | None:
        """See :class:`kvcli.cache.base.KVCache`."""
        return self.state.copy() if self.state is not None and self.step.part == "question" else self.state

    def tell(self, surprise: Tensor) -> None:
        """Give the last chunk's :data:`kvcli.eviction.base.SURPRISE` to all layers without a window."""
        for layer in self._layers:
            if layer.window is None and not layer.uses_owner and not layer.follows:
                layer.state[SURPRISE] = surprise

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, workspace included."""
        state = 0 if self.state is None else self.state.nbytes
        return self.workspace.nbytes + sum(layer.nbytes for layer in self._layers) + state

    def allot(self) -> None:
        """Let the policy divide its budget anew among the layers, once the whole text is read."""
        if self.limit is not None or not self.policy.allots:
            return
        own = [x for x in self._layers if x.window is None and not x.uses_owner and not x.follows]
        counts = [max(0, layer.count - self.policy.tail) for layer in own]
        for layer, budget in zip(own, self.policy.allot([layer.state for layer in own], counts), strict=True):
            self.budgets[layer.index] = budget
        for layer in self._layers:
            if layer.window is None and not layer.uses_owner:
                self.budgets[layer.index] = budget = self.budgets[self.leaders[layer.index]] or 0
                layer.shrink(budget + self.policy.tail)

    def copy(self) -> PrefillCache:
        """Return an independent cache with the same units; the model's parts are shared."""
        parts = (
            self.spec,
            self.policy,
            self.rotary,
            self.heads,
            self.storage,
            self.calibration,
            self.basis,
            self.folding,
            self.workspace.copy_stream,
        )
        shared = {id(part): part for part in parts}
        clone = copy.copy(self)
        shared[id(proxy(self))] = proxy(clone)  # an object has only one proxy
        clone.__dict__ = copy.deepcopy(self.__dict__, shared)
        return clone

    def release(self) -> None:
        """Free the workspace; call :meth:`reserve` before the next chunk."""
        self.workspace.release()

    def reserve(self, tokens: int, chunk: int) -> None:
        """Allocate buffers for ``tokens`` tokens in total, in chunks of at most ``chunk``; kept units stay."""
        for i, layer in enumerate(self._layers):
            layer.reserve(self._capacity(i, tokens))
        self.workspace.reserve(self._workspace_numbers(chunk))

    def _workspace_numbers(self, chunk: int) -> int:
        """Return the numbers of the largest layer's keys that are not in codes, plus a chunk's."""
        exact = (layer for layer in self._layers if layer.row_codec is None)
        return max((layer.heads * layer.dim * (layer.capacity + chunk) for layer in exact), default=0)

    def _capacity(self, layer: int, tokens: int) -> int:
        if self.owners[layer] != layer:
            return 0
        window, budget = self.spec.sliding[layer], self.budgets[layer]
        if window is not None:
            return min(tokens, window - 1)
        return tokens if budget is None else min(tokens, budget + self.policy.tail)


@dataclass(frozen=True)
class _Visible:
    """What a chunk attends to in one layer, before eviction.

    Attributes:
        keys, values: rotated keys and values of the chunk, after those of the kept units unless they are in codes.
        stored: kept units in codes, if there are any.
        units: what the policy chooses from.
        pos: positions of kept units and the chunk, ``[H_kv, c + m]``.
    """

    keys: Tensor
    values: Tensor
    stored: RowLayer | None
    units: DenseUnits | QuantizedUnits
    pos: Tensor


def attend_earlier(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend to earlier tokens than each query's own: the last key belongs to the last query's token."""
    return attention(q, k[:, :-1], v[:, :-1], scale, k.shape[1] - 1 - q.shape[1])[0]


@dataclass(frozen=True)
class _SharedUnits:
    """What a layer attends to while others use it, and the eviction that waits for them."""

    visible: _Visible
    evict: Callable[[], None]


@dataclass
class PrefillCacheLayer:
    """One layer's kept units in document order: keys before RoPE, values, scores and positions.

    Keys and values are ``[H_kv, capacity, D]`` in the model's dtype, or with ``row_codec`` uint8 ``[H_kv, capacity,
    width]``. ``cache`` is a weak proxy, as in :class:`kvcli.cache.decode_cache.DecodeCacheLayer`.
    """

    cache: PrefillCache = field(repr=False)
    index: int
    window: int | None
    capacity: int
    dtype: torch.dtype
    device: torch.device
    count: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    shared: _SharedUnits | None = field(default=None, repr=False)
    ahead: _Visible | None = field(default=None, repr=False)
    """What lower layers use of the pass before (:class:`kvcli.cache.base.DraftedCache`)."""
    waiting: tuple[Tensor, ...] = field(default=(), repr=False)
    """Queries, keys and values of a chunk whose question follows in another pass."""
    chosen: Tensor | None = field(default=None, repr=False)
    """The survivors of the chunk, ``[H_kv, c]``, for the upper layer of a pair; ``None`` if all survive."""

    def __post_init__(self) -> None:
        own = self.cache.spec.of_layer(self.index)
        self.heads, self.dim = heads, dim = own.kv_heads, own.head_dim
        storage = self.cache.storage
        host = storage is not None and storage.offloads
        buffer_device = torch.device("cpu") if host else self.device
        pinned = host and self.device.type == "cuda"
        self.row_codec = self.cache.row_codec if self.window is None else None
        width, dtype = (dim, self.dtype) if self.row_codec is None else (self.row_codec.width(dim), torch.uint8)
        shape = (heads, self.capacity, width)
        self.k = torch.empty(shape, dtype=dtype, device=buffer_device, pin_memory=pinned)
        self.v = self.k if self.cache.spec.latent else torch.empty_like(self.k, pin_memory=pinned)
        self.scores = torch.empty(heads, self.capacity, dtype=torch.float32, device=self.device)
        self.pos = torch.empty(heads, self.capacity, dtype=torch.int32, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the layer's buffers."""
        values = [] if self.v is self.k else [self.v]
        return sum(t.nbytes for t in (self.k, *values, self.scores, self.pos, *self.state.values()))

    def reserve(self, capacity: int) -> None:
        """Grow the buffers to ``capacity`` units."""
        if capacity <= self.capacity:
            return
        for name in ("k", "v", "scores", "pos"):
            old: Tensor = getattr(self, name)
            new = torch.empty(
                (old.shape[0], capacity, *old.shape[2:]),
                dtype=old.dtype,
                device=old.device,
                pin_memory=old.device.type == "cpu" and old.is_pinned(),
            )
            new[:, : self.count] = old[:, : self.count]
            setattr(self, name, new)
        self.v = self.k if self.cache.spec.latent else self.v
        self.capacity = capacity

    def release(self) -> None:
        """Free the buffers."""
        self.k, self.v, self.scores, self.pos = (t.new_empty(0) for t in (self.k, self.v, self.scores, self.pos))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """Attend, score and evict; see :class:`kvcli.cache.base.KVCacheLayer`."""
        cache, step, rows = self.cache, self.cache.step, q.shape[1]
        if step.part == "text":
            self.waiting = (q, k, v)
        elif step.part == "question":
            q, k, v = (torch.cat(pair, dim=1) for pair in zip(self.waiting, (q, k, v), strict=True))
            self.waiting = ()
        m = q.shape[1]
        owner = cache.layers[cache.owners[self.index]]
        c = owner.count
        rope_positions = range(c, c + m) if self.compact else range(step.start, step.start + m)
        q_rotated = cache.rotary.rotate(self.index, q, rope_positions)
        if owner.index > self.index:
            assert owner.ahead is not None
            return attend_earlier(q_rotated, owner.ahead.keys, owner.ahead.values, scale)
        if owner is self:
            visible = self._visible(k, v, rope_positions)
        else:
            assert owner.shared is not None
            visible = owner.shared.visible
        keys, values, stored = visible.keys, visible.values, visible.stored
        asking, old = q_rotated[:, -rows:], keys.shape[1] - rows
        evicted = None
        if owner is self and cache.folding is not None and of_fold(self.state):
            evicted = cache.folding.recall(self.index, self.state, q[:, -rows:], scale)
        if stored is None and sink is None and evicted is None:
            if window is None and cache.sparse is not None:
                out = cache.sparse.attend(owner.index, asking, keys, values, scale)
            else:
                out = causal_attention(asking, keys, values, scale, window)
        else:
            term = attention(asking, keys, values, scale, old, window)
            if stored is not None:
                term = merge_terms(stored.attend(asking, scale, c), term)
            out = with_sink(term if evicted is None else merge_terms(term, evicted), sink)

        if owner is self:
            evict = self._eviction(visible, q, k, v, q_rotated, scale)
            if self.shared_with_lower:
                self.ahead = visible if cache.draft else None
            if cache.last_users.get(self.index, -1) > self.index:
                self.shared = _SharedUnits(visible, evict)
            else:
                evict()
        elif self.index == cache.last_users[owner.index]:
            assert owner.shared is not None
            owner.shared.evict()
            cache.workspace.wait()  # copies to host memory read what the owner shared
            owner.shared = None
        if self.index + 1 == len(cache.layers):
            cache.workspace.wait()
        return out

    def _visible(self, k: Tensor, v: Tensor, rope_positions: range) -> _Visible:
        """What a chunk with these keys and values attends to."""
        step, c, m = self.cache.step, self.count, k.shape[1]
        pos = torch.arange(step.start, step.start + m, dtype=torch.int32, device=self.device)
        pos = torch.cat([self.pos[:, :c], pos.expand(k.shape[0], m)], dim=1)
        if self.row_codec is None:
            keys, values, units = self._with_kept(k, v, pos)
            return _Visible(keys, values, None, units, pos)
        keys, stored = self.cache.rotary.rotate(self.index, k, rope_positions), self.stored()  # never with a window
        quantized = QuantizedUnits(stored, k[:, : step.new], v[:, : step.new], keys)
        return _Visible(keys, v, stored if c else None, quantized, pos)

    def _eviction(
        self, visible: _Visible, q: Tensor, k: Tensor, v: Tensor, q_rotated: Tensor, scale: float
    ) -> Callable[[], None]:
        """The step after a chunk's attention: nothing, the next window, or the policy's choice."""
        cache, step, c, units = self.cache, self.cache.step, self.count, visible.units
        pos = visible.pos[:, : c + step.new]
        if cache.draft or step.part == "text":
            return cache.workspace.wait  # nothing is evicted before the last pass or the question
        if self.window is not None:
            return partial(self._keep_window, units.k, units.v, pos)
        if cache.storage is not None:
            cache.storage.observe(self.state, self.index, q_rotated[:, : step.new], step.start)
        chunk = Chunk(
            layer=self.index,
            start=step.start,
            units=units,
            new_k=k[:, : step.new],
            new_v=v[:, : step.new],
            q=q[:, : step.new],
            pos=pos,
            scores=self.scores[:, :c],
            state=self.state,
            q_rotated=q_rotated,
            scale=scale,
            probe=step.probe,
            heads=cache.heads,
            probe_q=q[:, step.new :],
            compact=self.compact,
            rotate=partial(cache.rotary.rotate, self.index),
        )
        return partial(self._evict, chunk)

    def shrink(self, count: int) -> None:
        """Keep the ``count`` units with the best stored scores, and what is protected."""
        if count >= self.count:
            return
        policy, units = self.cache.policy, slice(0, self.count)
        pos, scores = self.pos[:, units], self.scores[:, units]
        protected = min(count, policy.newest + policy.tail)
        index = select(scores, count, sinks=pos < policy.sinks if policy.sinks else None, recent=protected)
        kept = pos.gather(1, index), scores.gather(1, index)
        place = index.to(self.k.device)
        for tensor in (self.k,) if self.v is self.k else (self.k, self.v):
            tensor[:, :count] = gather(tensor, place)
        self.pos[:, :count], self.scores[:, :count] = kept
        self.count = count

    @property
    def uses_owner(self) -> bool:
        """Whether the layer has no units and uses those of another one."""
        return self.cache.owners[self.index] != self.index

    @property
    def shared_with_lower(self) -> bool:
        """Whether a lower layer uses its units."""
        return self.index in self.cache.owners[: self.index]

    def blank(self, tokens: int) -> _Visible:
        """Return the kept units, and zeros for ``tokens`` new ones."""
        new, start = self.k.new_zeros(self.heads, tokens, self.dim), self.cache.step.start
        pos = torch.arange(start, start + tokens, dtype=torch.int32, device=self.device).expand(self.heads, tokens)
        pos = torch.cat([self.pos[:, : self.count], pos], dim=1)
        keys, values, units = self._with_kept(new, new, pos)
        return _Visible(keys, values, None, units, pos)

    @property
    def leads(self) -> bool:
        """Whether it is the lower layer of a pair."""
        return self.index in self.cache.leaders[self.index + 1 :]

    @property
    def follows(self) -> bool:
        """Whether the layer keeps what the lower layer of its pair keeps."""
        return self.cache.leaders[self.index] != self.index

    @property
    def compact(self) -> bool:
        """Whether keys are rotated to their slots; otherwise to their positions in the document."""
        return self.cache.policy.positions == "compact"

    def stored(self) -> RowLayer:
        """Return the kept units in codes as an attendable layer; it shares this layer's tensors."""
        assert self.row_codec is not None
        c, rotate = self.count, partial(self.cache.rotary.rotate, self.index)
        k = self.k[:, :c]
        v = k if self.v is self.k else self.v[:, :c]
        return RowLayer(k, v, self.pos[:, :c], self.compact, self.row_codec, rotate, self.dtype)

    def _with_kept(self, k: Tensor, v: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, DenseUnits]:
        """Return rotated keys and values of kept and new units in the workspace, and these units."""
        c, m, u = self.count, k.shape[1], self.count + self.cache.step.new
        work_k, work_v = (t[:, : c + m] for t in self.cache.workspace.view(self.cache.layers, self.index))
        work_k[:, c:], work_v[:, c:] = k, v
        if self.index in self.cache.last_users:  # the next layers compute in the workspace
            work_k, work_v = work_k.clone(), work_v.clone()
        k_rotated = self.cache.rotary.rotate(self.index, work_k, range(c + m) if self.compact else pos.long())
        return k_rotated, work_v, DenseUnits(work_k[:, :u], work_v[:, :u], k_rotated)

    def _evict(self, chunk: Chunk) -> None:
        policy, step, units = self.cache.policy, self.cache.step, chunk.kept + chunk.new
        if self.follows:
            self._follow(chunk)
            return
        scores, budget = policy.rescore(chunk), self.cache.budgets[self.index]
        recent = max(policy.newest, 0 if step.last else policy.recent)
        if self.cache.limit is not None and self.cache.storage is not None:
            (q, k), new = chunk.rotated, chunk.new
            scores = self.cache.storage.pool_scores(chunk.scores, q[:, :new], k[:, :units], chunk.pos, chunk.scale)
            recent = self.cache.limit - self.cache.limit // 2
        if not step.evict or budget is None or (units <= budget and not policy.evicts_early):
            self._append(chunk, scores)
            return
        index = policy.choose(chunk, scores, budget, min(recent, units))
        changed = policy.remains(chunk, index)
        if self.leads:
            self.chosen = index
        if self.cache.folding is not None and index.shape[1] < units:
            fold(self.cache.folding, chunk, index)
        k, v = self._stored_units(chunk)
        self.count = index.shape[1]
        compact(index, Units(k, v, chunk.pos, scores), Units(self.k, self.v, self.pos, self.scores))
        if changed is not None:
            self.k[:, : self.count], self.v[:, : self.count] = changed

    def _follow(self, chunk: Chunk) -> None:
        """Keep the units that the leader has kept, with its scores."""
        leader = self.cache.layers[self.cache.leaders[self.index]]
        scores = leader.scores[:, : leader.count].to(self.device)
        if leader.chosen is None:
            self._append(chunk, scores)
            return
        index, self.count, leader.chosen = leader.chosen.to(self.device), leader.count, None
        before = torch.zeros_like(chunk.pos, dtype=torch.float32)
        compact(index, Units(chunk.k, chunk.v, chunk.pos, before), Units(self.k, self.v, self.pos, self.scores))
        self.scores[:, : self.count] = scores

    def _append(self, chunk: Chunk, scores: Tensor) -> None:
        old, new = chunk.kept, chunk.kept + chunk.new
        if self.row_codec is None:
            self.cache.workspace.append(self, (chunk.k, chunk.v), old, new)
        else:
            self.k[:, old:new], self.v[:, old:new] = self._encode_new(chunk)
        self.scores[:, :new] = scores
        self.pos[:, old:new] = chunk.pos[:, old:]
        self.count = new

    def _stored_units(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return all keys and values in their stored form."""
        if self.row_codec is None:
            return chunk.k, chunk.v
        k, v = self._encode_new(chunk)
        return torch.cat([self.k[:, : self.count], k], dim=1), torch.cat([self.v[:, : self.count], v], dim=1)

    def _encode_new(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Encode the chunk's keys and values; nothing else is ever encoded."""
        assert self.row_codec is not None
        try:
            return self.row_codec.encode(chunk.new_k), self.row_codec.encode(chunk.new_v)
        except ValueError as error:
            name = self.cache.storage.name if self.cache.storage else ""
            raise ModelError(f"{name} cannot hold layer {self.index}: {error}", "--kv-bits 16") from None

    def _keep_window(self, k: Tensor, v: Tensor, pos: Tensor) -> None:
        """Keep the sliding window of the next query, whatever the policy."""
        self.count = min(k.shape[1], self.capacity)
        first = k.shape[1] - self.count
        self.k[:, : self.count] = k[:, first:]
        self.v[:, : self.count] = v[:, first:]
        self.pos[:, : self.count] = pos[:, first:]
        self.scores[:, : self.count] = 0.0
