"""Attention of queries to a frozen context, recorded during their forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kvcli.cache.base import State, with_sink
from kvcli.cache.context import Context
from kvcli.types import Rotary
from kvcli_kernels.attention import attention, scaled
from kvcli_kernels.merge import merge

LabelKind = Literal["prob", "logit", "repeat"]
"""``prob``: maximum log-probability over question and answer queries and the query group. ``logit``: maximum
pre-softmax logit over answer queries and the group, as published for Locret. ``repeat``: as ``prob``, but the queries
repeat the text, as in KVzip (Kim et al. 2025, arXiv 2505.23416)."""


_WORK = 1 << 24
"""Elements of one query-key product."""


class Observer:
    """A KV cache for several question-answer pairs that each attend to one frozen text and to themselves only.

    Args:
        rotary: the model's RoPE.
        context: the text. The pairs attend to all of it, however it is stored.
        pairs: per pair, the number of question ids and of answer ids.
        kind: the label to record; the caller chooses matching pairs.
    """

    def __init__(self, rotary: Rotary, context: Context, pairs: Sequence[tuple[int, int]], kind: LabelKind) -> None:
        self.rotary, self.context, self.pairs, self.kind = rotary, context, pairs, kind
        self.draft = False
        self.state = None if context.state is None else context.state.copy()
        self.layers = [ObserverLayer(self, i) for i in range(len(context.layers))]

    def position_ids(self, count: int) -> Tensor:
        """See :class:`kvcli.cache.base.KVCache`; each pair begins after the text."""
        device = self.context.layers[0].pos.device
        places = [torch.arange(question + answer, device=device) for question, answer in self.pairs]
        return self.context.seen + torch.cat(places)[:count]

    def take_state(self) -> State | None:
        """See :class:`kvcli.cache.base.KVCache`."""
        return self.state

    def begin_passes(self, tokens: int) -> None:  # noqa: ARG002
        """See :class:`kvcli.cache.base.DraftedCache`."""
        for layer in self.layers:
            layer.new = None

    def restart(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Observe other pairs too. The state of recurrent layers sees one pair at a time."""
        self.pairs = pairs
        self.state = None if self.context.state is None else self.context.state.copy()

    @property
    def labels(self) -> list[Tensor | None]:
        """Per layer, float32 ``[H_kv, n]``; ``None`` for sliding-window layers."""
        return [layer.label for layer in self.layers]


class ObserverLayer:
    def __init__(self, observer: Observer, index: int) -> None:
        self.observer, self.index = observer, index
        self.label: Tensor | None = None
        self.new: tuple[Tensor, Tensor] | None = None  # keys and values for layers that borrow them

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """Attend and record the label; see :class:`kvcli.cache.base.KVCacheLayer`."""
        observer, stored = self.observer, self.observer.context.layers[self.index]
        n, start = stored.pos.shape[1], observer.context.starts[self.index]
        kept_k, kept_v = stored.dense()
        owner = observer.context.owner(self.index)
        ahead = int(owner > self.index)  # then a token sees what comes before it
        if owner != self.index:
            lent = observer.layers[owner].new or (k * 0, v * 0)
            k, v = lent
        elif observer.context.owners:
            self.new = k, v
        outputs, first = [], 0
        for question, answer in observer.pairs:
            m = question + answer
            part = slice(first, first + m)
            positions = range(start, start + m)
            rotated = observer.rotary.rotate(self.index, q[:, part], positions)
            keys = observer.rotary.rotate(self.index, k[:, part], positions)
            local_term = attention(rotated, keys[:, : m - ahead], v[:, part][:, : m - ahead], scale, -ahead, window)
            o, lse = merge(attention(rotated, kept_k, kept_v, scale, n, stored.window), local_term)
            if stored.window is None and not observer.draft:
                # The token that predicts the answer's first word is the question's last.
                rows = slice(question - 1, m - 1) if observer.kind == "logit" else slice(0, m)
                whole = lse if sink is None else torch.logaddexp(lse, sink.to(lse.dtype)[:, None])
                self._record(rotated[:, rows], kept_k, scale, whole[:, rows])
            outputs.append(with_sink((o, lse), sink))
            first += m
        return torch.cat(outputs, dim=1)

    def _record(self, q: Tensor, k: Tensor, scale: float, lse: Tensor) -> None:
        label = torch.stack([block.amax(dim=1) for block in self._attention_scores(q, k, scale, lse)]).amax(dim=0)
        self.label = label if self.label is None else torch.maximum(self.label, label)

    def _attention_scores(self, q: Tensor, k: Tensor, scale: float, lse: Tensor) -> Iterator[Tensor]:
        """Yield the log-probabilities, or logits, of a block of queries: ``[H_kv, group · queries, n]``."""
        kv_heads, n, dim = k.shape
        step = max(1, _WORK // max(1, n * q.shape[0]))
        for start in range(0, q.shape[1], step):
            rows = slice(start, start + step)
            logits = scaled((q[:, rows].reshape(kv_heads, -1, dim) @ k.transpose(1, 2)).float(), scale)
            if self.observer.kind != "logit":
                logits -= lse[:, rows].reshape(kv_heads, -1, 1)
            yield logits
