"""The decode cache: keys and values of question and answer, rewindable for the next question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import proxy

import torch
from torch import Tensor

from kvcli.cache.base import State, with_sink
from kvcli.cache.context import Context
from kvcli.storage.base import Attendable, Prefetching, Staging
from kvcli.types import ModelSpec, Rotary
from kvcli_kernels.attention import attention
from kvcli_kernels.merge import merge
from kvcli_kernels.varlen import varlen_attention

_GROWTH = 256  # tokens, at least, where nobody has said how many there will be

MARKS = 2
"""States of recurrent layers that a decode cache keeps to go back to, besides the one at its beginning."""


class DecodeCache:
    """Exact keys and values of all tokens after the document. Never quantised, never evicted.

    Args:
        spec: the model's sizes.
        rotary: the model's RoPE.
        context: the document, or ``None`` for a conversation without one.
        dtype, device: of keys and values.
        state: of the model's recurrent layers without a document, if it has such layers.

    Attributes:
        length: tokens in the cache.
        position: int64 ``[1]`` on the device, equal to ``length``, during a step of constant shape
            (:class:`kvcli.engine.static_step.StaticStep`); ``None`` otherwise.
    """

    def __init__(
        self,
        spec: ModelSpec,
        rotary: Rotary,
        context: Context | None,
        *,
        dtype: torch.dtype,
        device: torch.device,
        state: State | None = None,
    ) -> None:
        self.spec, self.rotary = spec, rotary
        first = state if context is None else context.state
        self._marks: dict[int, State] = {} if first is None else {0: first}
        self._state = None if first is None else first.copy()
        self._ahead = False
        self.length = 0
        self.draft = False
        self.position: Tensor | None = None
        self.staging = Staging()
        self.owners = (context.owners if context is not None else spec.owners) or tuple(range(spec.layers))
        self.context: Context | None = None
        self.context_layers: list[Attendable] = []
        self.set_context(context)
        self._layers: list[DecodeCacheLayer] = []
        for i in range(spec.layers):
            own = spec.of_layer(i)
            on = spec.device_of(i, device)
            k = torch.empty(own.kv_heads, 0, own.head_dim, dtype=dtype, device=on)
            self._layers.append(DecodeCacheLayer(proxy(self), i, k, k if spec.latent else k.clone()))

    @property
    def max_position(self) -> int | None:
        """RoPE positions of the context's run; ``None`` without a context."""
        return None if self.context is None else self.context.max_position

    def set_context(self, context: Context | None) -> None:
        """Attend to another context of the same document and recipe; the cached tokens stay unchanged."""
        if context is self.context:  # what its layers remember is still of use
            return
        self.context = context
        self.context_layers = [] if context is None else [layer.open(self.staging) for layer in context.layers]

    @property
    def layers(self) -> Sequence[DecodeCacheLayer]:
        return self._layers

    def begin_passes(self, tokens: int) -> None:
        """See :class:`kvcli.cache.base.DraftedCache`."""
        for layer in self._layers:
            if tokens > 1 and layer.index in self.owners[: layer.index]:
                layer.make_room(self.length + tokens)
                layer.k[:, self.length :] = 0
                layer.v[:, self.length :] = 0

    def position_ids(self, count: int) -> Tensor:
        """See :class:`kvcli.cache.base.KVCache`."""
        seen = 0 if self.context is None else self.context.seen
        if self.position is not None:
            return self.position + seen
        return torch.arange(seen + self.length, seen + self.length + count, device=self._layers[0].k.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the cached tokens, without reserved capacity, and of the states of recurrent layers."""
        states = [] if self._state is None else [self._state, *(s for length, s in self._marks.items() if length)]
        rows = (self.spec.of_layer(i) for i, owner in enumerate(self.owners) if owner == i)
        row_bytes = sum(row.kv_heads * row.unit_bytes for row in rows)
        return self.length * row_bytes + sum(state.nbytes for state in states)

    def reserve(self, tokens: int) -> None:
        """Allocate buffers and rotations for ``tokens`` tokens in total, so that no step allocates."""
        for layer in self._layers:
            layer.reserve(tokens)

    def trim(self) -> None:
        """Give back the memory that no token uses."""
        for layer in self._layers:
            k, v = layer.k, layer.v
            layer.k = k[:, : self.length].clone()
            layer.v = layer.k if v is k else v[:, : self.length].clone()

    def extend(self, count: int) -> None:
        """Count tokens that have passed all layers."""
        self.length += count
        self._ahead = False

    def take_state(self) -> State | None:
        """See :class:`kvcli.cache.base.KVCache`."""
        if self._state is not None:
            if self._ahead:
                raise RuntimeError("the recurrent state is ahead of the cache; rewind the cache first")
            self._ahead = True
        return self._state

    @property
    def recurrent(self) -> bool:
        """Whether the model has recurrent layers, whose state cannot drop tokens."""
        return self._state is not None

    def mark(self) -> None:
        """Remember the state of recurrent layers, so that :meth:`rewind` can come back to this length."""
        if self._state is None or self._ahead or self.length in self._marks:
            return
        self._marks[self.length] = self._state.copy()
        for length in sorted(self._marks)[1:-MARKS]:
            del self._marks[length]

    def prefetches(self, layer: int) -> bool:
        """Whether a layer takes predicted queries (see :meth:`prefetch`)."""
        return layer < len(self.context_layers) and isinstance(self.context_layers[layer], Prefetching)

    def prefetch(self, layer: int, q: Tensor, scale: float) -> None:
        """Prefetch for predicted queries ``[H, m, D]`` before RoPE while the previous layer runs."""
        held, context = self.context_layers[layer], self.context
        assert context is not None
        assert isinstance(held, Prefetching)
        first = context.starts[layer]
        begin = first + self.length
        positions = range(begin, begin + q.shape[1]) if self.position is None else self.position + first
        held.prefetch(self.rotary.rotate(layer, q, positions), scale)

    def rewind(self, length: int = 0) -> None:
        """Remove everything after the first ``length`` tokens; the rest is unchanged bit for bit.

        The state of recurrent layers cannot be cut. With such layers, everything after the last mark up to ``length``
        is removed, unless the cache has this length already. The caller appends the tokens between again.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a tail of {self.length} tokens to {length}")
        if self._state is not None and (length < self.length or self._ahead):
            length = max(mark for mark in self._marks if mark <= length)
            self._marks = {mark: state for mark, state in self._marks.items() if mark <= length}
            self._state, self._ahead = self._marks[length].copy(), False
        self.length = length


@dataclass
class DecodeCacheLayer:
    """One layer's rotated keys and values ``[H_kv, capacity, D]``, of which ``cache.length`` tokens are in use.

    Both are one tensor if the model has latents.

    ``cache`` is a weak proxy. A reference cycle would keep it and its context until the garbage collector runs, and
    that is rare in a process of this size.
    """

    cache: DecodeCache = field(repr=False)
    index: int
    k: Tensor
    v: Tensor

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """See :class:`kvcli.cache.base.KVCacheLayer`."""
        if self.cache.position is not None:
            return self._attend_at(self.cache.position, q, k, v, scale, sink)
        cache, m = self.cache, q.shape[1]
        begin, end = cache.length, cache.length + m
        context = cache.context
        start = 0 if context is None else context.starts[self.index]
        positions = range(start + begin, start + end)
        raw, q = q, cache.rotary.rotate(self.index, q, positions)
        term = self.attend_own(q, cache.rotary.rotate(self.index, k, positions), v, scale, window)
        if context is not None:
            slots = context.layers[self.index].pos.shape[1]
            if slots:
                term = merge(cache.context_layers[self.index].attend(q, scale, slots + begin), term)
            if context.folded is not None:
                term = context.folded.add(self.index, raw, scale, term)
        return with_sink(term, sink)

    @property
    def owner(self) -> DecodeCacheLayer:
        """The layer whose keys and values this one uses: itself unless it shares."""
        layer: DecodeCacheLayer = self.cache._layers[self.cache.owners[self.index]]
        return layer

    def attend_own(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
        """Store rotated keys and values, and attend to this cache alone: ``(o [H, m, D], lse [H, m])``."""
        begin, end = self.cache.length, self.cache.length + q.shape[1]
        owner = self.owner
        if owner.index > self.index:  # a higher one, which has stored its own in the pass before: earlier tokens'
            return attention(q, owner.k[:, : end - 1], owner.v[:, : end - 1], scale, begin - 1)
        if owner is not self:  # a lower layer, which has stored its own
            return attention(q, owner.k[:, :end], owner.v[:, :end], scale, begin, window)
        self.make_room(end)
        if self.v is not self.k:
            self.v[:, begin:end] = v
        self.k[:, begin:end] = k
        return attention(q, self.k[:, :end], self.v[:, :end], scale, begin, window)

    def make_room(self, tokens: int) -> None:
        """Have buffers for ``tokens`` tokens, and for more if these must grow."""
        if tokens > self.k.shape[1]:
            self.reserve(max(tokens, self.k.shape[1] + max(_GROWTH, self.k.shape[1] // 2)))

    def _attend_at(
        self, position: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, sink: Tensor | None
    ) -> Tensor:
        """Attend with one token at a position that only the device knows, over whole buffers of constant shape."""
        cache, context = self.cache, self.cache.context
        positions = position + (0 if context is None else context.starts[self.index])
        raw, q = q, cache.rotary.rotate(self.index, q, positions)
        owner = self.owner
        if owner is self:
            if self.v is not self.k:
                self.v.index_copy_(1, position, v)
            self.k.index_copy_(1, position, cache.rotary.rotate(self.index, k, positions))
        term = varlen_attention(q, owner.k, owner.v, scale, (position + 1).expand(k.shape[0]).contiguous())
        slots = 0 if context is None else context.layers[self.index].pos.shape[1]
        if slots:
            term = merge(cache.context_layers[self.index].attend(q, scale, slots), term)
        if context is not None and context.folded is not None:
            term = context.folded.add(self.index, raw, scale, term)
        return with_sink(term, sink)

    def reserve(self, tokens: int) -> None:
        """Allocate finite buffers for ``tokens`` tokens, and angles for their positions."""
        context, used = self.cache.context, self.cache.length
        if tokens > self.k.shape[1] and self.owner is self:
            one = self.v is self.k
            for name in ("k",) if one else ("k", "v"):
                old: Tensor = getattr(self, name)
                new = old.new_zeros(old.shape[0], tokens, old.shape[2])
                new[:, :used] = old[:, :used]
                setattr(self, name, new)
            self.v = self.k if one else self.v
        self.cache.rotary.reserve(self.index, self.k, tokens + (0 if context is None else context.starts[self.index]))
