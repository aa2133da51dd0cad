"""Attention of queries to a frozen context, recorded while the queries run through the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kvcli.cache.context import Context
from kvcli.types import Rotary
from kvcli_kernels.attention import attention
from kvcli_kernels.merge import merge

LabelKind = Literal["prob", "logit", "repeat"]
"""``prob``: the maximum over question and answer queries and the query group of the log-probability. ``logit``: that
over answer queries and the group of the pre-softmax logit, as published for Locret. ``repeat``: as ``prob``, but the
queries are those of saying the text again, as in KVzip (Kim et al. 2025, arXiv 2505.23416)."""


_WORK = 1 << 24
"""Numbers of one product of queries and keys."""


class Observer:
    """A store in which several questions, each with its answer, stand side by side behind one frozen text.

    Every tail sees the text and itself and no other tail.

    Args:
        rotary: the model's RoPE.
        context: the whole text. However it is held, these tails attend to all of it.
        tails: per tail, how many ids are the question's and how many the answer's.
        kind: which label to take; it is the caller's what the tails say.
    """

    def __init__(self, rotary: Rotary, context: Context, tails: Sequence[tuple[int, int]], kind: LabelKind) -> None:
        self.rotary, self.context, self.tails, self.kind = rotary, context, tails, kind
        self.layers = [ObserverLayer(self, i) for i in range(len(context.layers))]

    @property
    def labels(self) -> list[Tensor | None]:
        """Per layer, float32 ``[H_kv, n]``; ``None`` for layers with a window of their own."""
        return [layer.label for layer in self.layers]


class ObserverLayer:
    def __init__(self, observer: Observer, index: int) -> None:
        self.observer, self.index = observer, index
        self.label: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See :class:`kvcli.cache.base.KVCacheLayer`; also takes the label."""
        observer, held = self.observer, self.observer.context.layers[self.index]
        n, start = held.pos.shape[1], observer.context.starts[self.index]
        kept_k, kept_v = held.dense()
        outputs, first = [], 0
        for question, answer in observer.tails:
            m = question + answer
            part = slice(first, first + m)
            places = range(start, start + m)
            rotated = observer.rotary.rotate(self.index, q[:, part], places)
            keys = observer.rotary.rotate(self.index, k[:, part], places)
            own = attention(rotated, keys, v[:, part], scale, 0, window)
            o, lse = merge(attention(rotated, kept_k, kept_v, scale, n, held.window), own)
            if held.window is None:
                # The token that predicts the answer's first word is the question's last.
                rows = slice(question - 1, m - 1) if observer.kind == "logit" else slice(0, m)
                self._take(rotated[:, rows], kept_k, scale, lse[:, rows])
            outputs.append(o)
            first += m
        return torch.cat(outputs, dim=1)

    def _take(self, q: Tensor, k: Tensor, scale: float, lse: Tensor) -> None:
        label = torch.stack([block.amax(dim=1) for block in self._regard(q, k, scale, lse)]).amax(dim=0)
        self.label = label if self.label is None else torch.maximum(self.label, label)

    def _regard(self, q: Tensor, k: Tensor, scale: float, lse: Tensor) -> Iterator[Tensor]:
        """What a few queries at a time give each key: log-probabilities, or logits, ``[H_kv, group · queries, n]``."""
        kv_heads, n, dim = k.shape
        step = max(1, _WORK // max(1, n * q.shape[0]))
        for start in range(0, q.shape[1], step):
            rows = slice(start, start + step)
            logits = (q[:, rows].reshape(kv_heads, -1, dim) @ k.transpose(1, 2)).float() * scale
            if self.observer.kind != "logit":
                logits -= lse[:, rows].reshape(kv_heads, -1, 1)
            yield logits
