"""The tail: a question and its answer, attending to a context and to themselves, rewindable for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import proxy

import torch
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.storage.base import Attendable, Prefetching
from kvcli.storage.staging import Staging
from kvcli.types import ModelSpec, Rotary
from kvcli_kernels.attention import attention
from kvcli_kernels.merge import merge
from kvcli_kernels.varlen import varlen_attention

_GROWTH = 256  # tokens, at least, where nobody has said how many there will be


class DecodeCache:
    """Exact keys and values of everything after the document. Never quantised, never evicted.

    Args:
        spec: the model's sizes.
        rotary: the model's RoPE.
        context: the document, or ``None`` for a conversation without one.
        dtype, device: of keys and values.

    Attributes:
        length: tokens that have passed.
        position: int64 ``[1]`` on the device, equal to ``length``, while a step runs whose shapes do not depend on how
            many tokens there are (:class:`kvcli.engine.decode_step.StaticStep`); ``None`` otherwise.
    """

    def __init__(
        self, spec: ModelSpec, rotary: Rotary, context: Context | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.rotary = spec, rotary
        self.length = 0
        self.position: Tensor | None = None
        self.staging = Staging()
        self.context: Context | None = None
        self.held: list[Attendable] = []
        self.set_context(context)
        empty = torch.empty(spec.kv_heads, 0, spec.head_dim, dtype=dtype, device=device)
        self._layers = [DecodeCacheLayer(proxy(self), i, empty.clone(), empty.clone()) for i in range(spec.layers)]

    @property
    def max_position(self) -> int | None:
        """RoPE positions of the context's run; ``None`` without a context."""
        return None if self.context is None else self.context.max_position

    def set_context(self, context: Context | None) -> None:
        """Attend to another part of the same document: what has passed stays as it was."""
        if context is self.context:  # what its layers remember is still of use
            return
        self.context = context
        self.held = [] if context is None else [layer.begin(self.staging) for layer in context.layers]

    @property
    def layers(self) -> Sequence[DecodeCacheLayer]:
        return self._layers

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that have passed; room for more comes on top."""
        return self.length * self.spec.layers * self.spec.kv_heads * self.spec.unit_bytes

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` in all, so that no step has to, and ready their rotations."""
        for layer in self._layers:
            layer.reserve(tokens)

    def extend(self, count: int) -> None:
        """Tokens have passed all layers and now belong to the tail."""
        self.length += count

    def prefetches(self, layer: int) -> bool:
        """Whether a layer wants to know its queries before they are there (see :meth:`prefetch`)."""
        return layer < len(self.held) and isinstance(self.held[layer], Prefetching)

    def prefetch(self, layer: int, q: Tensor, scale: float) -> None:
        """A guess of the next tokens' queries in a layer, ``[H, m, D]`` before RoPE, made a layer ahead."""
        held, context = self.held[layer], self.context
        assert context is not None
        assert isinstance(held, Prefetching)
        first = context.starts[layer]
        begin = first + self.length
        places = range(begin, begin + q.shape[1]) if self.position is None else self.position + first
        held.prefetch(self.rotary.rotate(layer, q, places), scale)

    def rewind(self, length: int = 0) -> None:
        """Forget everything after the first ``length`` tokens; what is left is as it was then, bit for bit."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a tail of {self.length} tokens to {length}")
        self.length = length


@dataclass
class DecodeCacheLayer:
    """One layer's tail: rotated keys and values ``[H_kv, capacity, D]``, of which ``tail.length`` are in use.

    ``tail`` is a weak proxy: a cycle would keep all of it, and its context, until Python looks for cycles, which in a
    process of this size is seldom.
    """

    tail: DecodeCache = field(repr=False)
    index: int
    k: Tensor
    v: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See :class:`kvcli.cache.base.KVCacheLayer`."""
        if self.tail.position is not None:
            return self._attend_at(self.tail.position, q, k, v, scale)
        tail, m = self.tail, q.shape[1]
        begin, end = tail.length, tail.length + m
        context = tail.context
        start = 0 if context is None else context.starts[self.index]
        places = range(start + begin, start + end)
        q = tail.rotary.rotate(self.index, q, places)
        if end > self.k.shape[1]:
            self.reserve(max(end, self.k.shape[1] + max(_GROWTH, self.k.shape[1] // 2)))
        self.k[:, begin:end] = tail.rotary.rotate(self.index, k, places)
        self.v[:, begin:end] = v
        term = attention(q, self.k[:, :end], self.v[:, :end], scale, begin, window)
        if context is not None:
            slots = context.layers[self.index].pos.shape[1]
            if slots:
                term = merge(tail.held[self.index].attend(q, scale, slots + begin), term)
        return term[0]

    def _attend_at(self, cursor: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """One token at a place that only the device knows; the same attention, over buffers that are always whole."""
        tail, context = self.tail, self.tail.context
        places = cursor + (0 if context is None else context.starts[self.index])
        q = tail.rotary.rotate(self.index, q, places)
        self.k.index_copy_(1, cursor, tail.rotary.rotate(self.index, k, places))
        self.v.index_copy_(1, cursor, v)
        term = varlen_attention(q, self.k, self.v, scale, (cursor + 1).repeat(k.shape[0]))
        slots = 0 if context is None else context.layers[self.index].pos.shape[1]
        if slots:
            term = merge(tail.held[self.index].attend(q, scale, slots), term)
        return term[0]

    def reserve(self, tokens: int) -> None:
        """Buffers for ``tokens``, finite everywhere, and angles for their places."""
        context, used = self.tail.context, self.tail.length
        if tokens > self.k.shape[1]:
            for name in ("k", "v"):
                old: Tensor = getattr(self, name)
                new = old.new_zeros(old.shape[0], tokens, old.shape[2])
                new[:, :used] = old[:, :used]
                setattr(self, name, new)
        self.tail.rotary.reserve(self.index, self.k, tokens + (0 if context is None else context.starts[self.index]))
