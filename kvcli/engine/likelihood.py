"""How likely a model finds the same words after each of several texts, and how much they attend to each, in one pass.

The texts are packed after their common beginning, whose keys are computed once. Each text sees the beginning and itself
and no other text, and none is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcli.cache.base import with_sink
from kvcli.engine.generate import append_tokens, new_decode_cache
from kvcli.models.model import Model
from kvcli_kernels.attention import attention, scaled

MIDDLE = (1 / 3, 2 / 3)
"""Layers whose attention is summed, as shares of the depth."""


@dataclass(frozen=True)
class WordsAfterTexts:
    """What a model says of the same words after each of several texts.

    Attributes:
        likelihoods: the mean log-probability per token of the words after each text; at most 0.
        attention: for each text, the part of its words' attention that a stretch of the text gets, 0 to 1. It is
            averaged over words, heads and the layers of :data:`MIDDLE`. ``None`` for models with recurrent layers.
    """

    likelihoods: list[float]
    attention: list[float] | None


class PackedTexts:
    """A store of several texts side by side that begin alike.

    Args:
        model: whose RoPE and layers they run through.
        shared: tokens of the common beginning.
        lengths: tokens of each text after it, with the words.
        words: tokens of the words that each text ends with, whose attention is summed; 0 sums nothing.
        stretches: of each text, the tokens (start, end) that this attention is counted for.
        read: a store of the common beginning alone, which need not be read again.
    """

    def __init__(
        self,
        model: Model,
        shared: int,
        lengths: Sequence[int],
        words: int = 0,
        stretches: Sequence[tuple[int, int]] = (),
        read: PackedTexts | None = None,
    ) -> None:
        self.layers: list[_PackedLayer]
        self.rotary, self.shared, self.lengths = model.rotary, shared, lengths
        self.words, self.stretches = words, stretches
        self.attention = torch.zeros(len(lengths), device=model.device)
        depth = model.spec.layers
        first = min(depth - 1, round(MIDDLE[0] * depth))
        self.watched = range(first, max(first + 1, round(MIDDLE[1] * depth)))
        self.max_position = shared + max(lengths, default=0)
        places = [torch.arange(0 if read is None else shared, shared)]
        places += [torch.arange(shared, shared + n) for n in lengths]
        self.positions = torch.cat(places).to(model.device)
        self.layers = [_PackedLayer(self, i, None if read is None else read.layers[i]) for i in range(depth)]

    def position_ids(self, count: int) -> Tensor:
        """See :class:`kvcli.cache.base.KVCache`."""
        return self.positions[:count]

    def take_state(self) -> None:
        """See :class:`kvcli.cache.base.KVCache`; texts side by side cannot have one state."""
        return


class _PackedLayer:
    def __init__(self, store: PackedTexts, index: int, read: _PackedLayer | None) -> None:
        self.store, self.index, self.read = store, index, read
        self.beginning: tuple[Tensor, Tensor] | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """See :class:`kvcli.cache.base.KVCacheLayer`."""
        store, shared = self.store, self.store.shared
        for x in (q, k):
            store.rotary.reserve(self.index, x, store.max_position)
        q = store.rotary.rotate(self.index, q, store.positions)
        k = store.rotary.rotate(self.index, k, store.positions)
        if self.read is not None and self.read.beginning is not None:
            first, begun, terms = 0, self.read.beginning, []
        else:
            first, begun = shared, (k[:, :shared], v[:, :shared])
            terms = [attention(q[:, :shared], *begun, scale, 0, window)] if shared else []
        if not store.lengths:
            self.beginning = begun
        for n, length in enumerate(store.lengths):
            if not length:
                continue
            part = slice(first, first + length)
            keys, values = (torch.cat((old, new[:, part]), dim=1) for old, new in zip(begun, (k, v), strict=True))
            terms.append(attention(q[:, part], keys, values, scale, shared, window))
            if store.words and self.index in store.watched:
                a, b = (shared + i for i in store.stretches[n])
                store.attention[n] += _attention_to(q[:, part][:, -store.words :], keys, scale, a, b)
            first += length
        return torch.cat([with_sink(term, sink) for term in terms], dim=1)


def _attention_to(q: Tensor, k: Tensor, scale: float, start: int, stop: int) -> Tensor:
    """The part of the attention of the last queries ``[H, w, D]`` that keys ``start`` to ``stop`` get, averaged.

    Keys are ``[H_kv, n, D]``, the queries are of the last ``w`` of them. Windows and sinks are left out.
    """
    words, total = q.shape[1], k.shape[1]
    grouped = q.float().reshape(k.shape[0], -1, words, q.shape[2])
    scores = scaled(torch.einsum("hgwd,hnd->hgwn", grouped, k.float()), scale)
    later = torch.ones(words, total, dtype=torch.bool, device=q.device).triu(total - words + 1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)[..., start:stop].sum(-1).mean()


@torch.inference_mode()
def read_beginning(model: Model, ids: Sequence[int]) -> tuple[Tensor, PackedTexts | None]:
    """The logits after the common beginning of texts, float32 ``[vocabulary]``, and what :func:`logits_after` takes.

    That is ``None``, and the beginning is read again, if later tokens change what the model makes of it.
    """
    if model.spec.state_bytes or model.spec.passes or model.rotary.length_dependent:
        return logits_after(model, ids, [[]], [range(-1, 0)])[0][0][0], None
    store = PackedTexts(model, len(ids), [])
    logits = model.forward(torch.tensor(ids, device=model.device), store, logits=True)
    assert logits is not None
    return logits.float(), store


@torch.inference_mode()
def logits_after(
    model: Model,
    beginning: Sequence[int],
    texts: Sequence[Sequence[int]],
    rows: Sequence[range],
    *,
    words: int = 0,
    stretches: Sequence[tuple[int, int]] = (),
    read: PackedTexts | None = None,
) -> tuple[list[Tensor], list[float] | None]:
    """The logits at some tokens of several texts that have the same beginning, in one pass.

    Args:
        model: a loaded model.
        beginning: token ids; at least one.
        texts: token ids after it.
        rows: of each text, successive tokens; -1 is the last one of the beginning, if that is not ``read``.
        words: tokens at the end of each text whose attention is summed; 0 sums nothing.
        stretches: of each text, the tokens (start, end) that this attention is counted for.
        read: the beginning, from :func:`read_beginning`.

    Returns:
        float32 ``[rows, vocabulary]`` for each text, and the attention of :class:`WordsAfterTexts`.
    """
    if model.spec.state_bytes:
        return _one_by_one(model, beginning, texts, rows), None
    lengths = [len(text) for text in texts]
    store = PackedTexts(model, len(beginning), lengths, words, stretches, read)
    unread = [] if read is not None else beginning
    ids = torch.tensor([*unread, *(i for text in texts for i in text)], device=model.device)
    kept, first = list[int](), len(unread)
    for length, wanted in zip(lengths, rows, strict=True):
        kept += [first + i if i >= 0 else len(unread) - 1 for i in wanted]
        first += length
    logits = model.forward(ids, store, logits=torch.tensor(kept, device=model.device))
    assert logits is not None
    found = list(torch.split(logits.float(), [len(wanted) for wanted in rows]))
    return found, (store.attention / len(store.watched)).tolist() if words else None


def _one_by_one(
    model: Model, beginning: Sequence[int], texts: Sequence[Sequence[int]], rows: Sequence[range]
) -> list[Tensor]:
    """The logits of :func:`logits_after` for models with recurrent layers: one text after the other."""
    cache = new_decode_cache(model, None)
    append_tokens(model, cache, beginning[:-1])
    cache.mark()
    start, found = cache.length, list[Tensor]()
    for text, wanted in zip(texts, rows, strict=True):
        ids = torch.tensor([beginning[-1], *text], device=model.device)
        keep = torch.tensor([i + 1 for i in wanted], device=model.device)
        logits = model.forward(ids, cache, logits=keep)
        assert logits is not None
        found.append(logits.float())
        cache.extend(len(ids))
        cache.rewind(start)
    return found


@torch.inference_mode()
def words_after(
    model: Model,
    beginning: Sequence[int],
    texts: Sequence[Sequence[int]],
    words: Sequence[int],
    stretches: Sequence[tuple[int, int]] = (),
) -> WordsAfterTexts:
    """How likely some words are after ``beginning`` and each text, and how much they attend to a stretch of it.

    Args:
        model: a loaded model.
        beginning: token ids that all texts begin with; at least one.
        texts: token ids; a text may be empty.
        words: token ids; at least one.
        stretches: of each text, the tokens (start, end) whose attention counts; by default all.
    """
    if not texts:
        return WordsAfterTexts([], [])
    stretches = stretches or [(0, len(text)) for text in texts]
    # The token that predicts the first of the words is the last before them.
    rows = [range(len(text) - 1, len(text) + len(words) - 1) for text in texts]
    packed = [[*text, *words] for text in texts]
    logits, attention = logits_after(model, beginning, packed, rows, words=len(words), stretches=stretches)
    wanted = torch.tensor(words, device=model.device)[:, None]
    means = [float((row.gather(1, wanted)[:, 0] - row.logsumexp(dim=1)).mean()) for row in logits]
    return WordsAfterTexts(means, attention)
