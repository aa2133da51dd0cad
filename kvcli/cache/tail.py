"""The tail: a question and its answer, attending to a context and to themselves, rewindable for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.hold.base import Foreseeing
from kvcli.hold.offload.staging import Staging
from kvcli.types import ModelSpec, Rotary
from kvcli_kernels.attention import attention
from kvcli_kernels.merge import merge

_GROWTH = 256


class Tail:
    """Exact keys and values of everything after the document. Never quantised, never evicted.

    Args:
        spec: the model's sizes.
        rotary: the model's RoPE.
        context: the document, or ``None`` for a conversation without one.
        dtype, device: of keys and values.
    """

    def __init__(
        self, spec: ModelSpec, rotary: Rotary, context: Context | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.rotary, self.context = spec, rotary, context
        self.length = 0
        self.staging = Staging()
        self.held = [] if context is None else [layer.begin(self.staging) for layer in context.layers]
        shape = (spec.kv_heads, 0, spec.head_dim)
        self._layers = [
            TailLayer(
                self, i, torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)
            )
            for i in range(spec.layers)
        ]

    @property
    def layers(self) -> Sequence[TailLayer]:
        return self._layers

    @property
    def nbytes(self) -> int:
        """Bytes of the tail's buffers."""
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self._layers)

    def extend(self, count: int) -> None:
        """Tokens have passed all layers and now belong to the tail."""
        self.length += count

    def foresees(self, layer: int) -> bool:
        """Whether a layer wants to know its queries before they are there (see :meth:`foresee`)."""
        return layer < len(self.held) and isinstance(self.held[layer], Foreseeing)

    def foresee(self, layer: int, q: Tensor, scale: float) -> None:
        """A guess of the next tokens' queries in a layer, ``[H, m, D]`` before RoPE, made a layer ahead."""
        held, context = self.held[layer], self.context
        assert context is not None
        assert isinstance(held, Foreseeing)
        first = context.starts[layer] + self.length
        held.foresee(self.rotary.rotate(layer, q, range(first, first + q.shape[1])), scale)

    def rewind(self, length: int = 0) -> None:
        """Forget everything after the first ``length`` tokens; what is left is as it was then, bit for bit."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a tail of {self.length} tokens to {length}")
        self.length = length


@dataclass
class TailLayer:
    """One layer's tail: rotated keys and values ``[H_kv, capacity, D]``, of which ``tail.length`` are in use."""

    tail: Tail = field(repr=False)
    index: int
    k: Tensor
    v: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See :class:`kvcli.cache.store.StoreLayer`."""
        tail, m = self.tail, q.shape[1]
        begin, end = tail.length, tail.length + m
        context = tail.context
        start = 0 if context is None else context.starts[self.index]
        places = range(start + begin, start + end)
        q = tail.rotary.rotate(self.index, q, places)
        self._reserve(end)
        self.k[:, begin:end] = tail.rotary.rotate(self.index, k, places)
        self.v[:, begin:end] = v
        term = attention(q, self.k[:, :end], self.v[:, :end], scale, begin, window)
        if context is not None:
            slots = context.layers[self.index].pos.shape[1]
            if slots:
                term = merge(tail.held[self.index].attend(q, scale, slots + begin), term)
        return term[0]

    def _reserve(self, length: int) -> None:
        room = self.k.shape[1]
        if length > room:
            more = max(length - room, _GROWTH, room // 2)
            self.k, self.v = (
                torch.cat([t, t.new_empty(t.shape[0], more, t.shape[2])], dim=1) for t in (self.k, self.v)
            )
