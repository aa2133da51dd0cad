"""How likely a model finds the same words after each of several texts, in one forward pass.

The texts are packed behind their common beginning: its keys are computed once, every text sees it and itself and no
other, and no text is padded to the length of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvcli.cache.base import with_sink
from kvcli.engine.generate import append_tokens, new_decode_cache
from kvcli.models.model import Model
from kvcli_kernels.attention import attention


class PackedTexts:
    """A store of several texts side by side that begin alike.

    Args:
        model: whose RoPE and layers they run through.
        shared: tokens of the common beginning.
        lengths: tokens of each text behind it.
    """

    def __init__(self, model: Model, shared: int, lengths: Sequence[int]) -> None:
        self.rotary, self.shared, self.lengths = model.rotary, shared, lengths
        self.max_position = shared + max(lengths)
        places = [torch.arange(shared), *(torch.arange(shared, shared + n) for n in lengths)]
        self.positions = torch.cat(places).to(model.device)
        self.layers = [_PackedLayer(self, i) for i in range(model.spec.layers)]

    def position_ids(self, count: int) -> Tensor:
        """See :class:`kvcli.cache.base.KVCache`."""
        return self.positions[:count]

    def take_state(self) -> None:
        """See :class:`kvcli.cache.base.KVCache`; texts side by side cannot have one state."""
        return


class _PackedLayer:
    def __init__(self, store: PackedTexts, index: int) -> None:
        self.store, self.index = store, index

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """See :class:`kvcli.cache.base.KVCacheLayer`."""
        store, shared = self.store, self.store.shared
        for x in (q, k):
            store.rotary.reserve(self.index, x, store.max_position)
        q = store.rotary.rotate(self.index, q, store.positions)
        k = store.rotary.rotate(self.index, k, store.positions)
        first = shared
        terms = [attention(q[:, :shared], k[:, :shared], v[:, :shared], scale, 0, window)] if shared else []
        for length in store.lengths:
            part = slice(first, first + length)
            keys = torch.cat((k[:, :shared], k[:, part]), dim=1)
            values = torch.cat((v[:, :shared], v[:, part]), dim=1)
            terms.append(attention(q[:, part], keys, values, scale, shared, window))
            first += length
        return torch.cat([with_sink(term, sink) for term in terms], dim=1)


def _one_by_one(
    model: Model, beginning: Sequence[int], texts: Sequence[Sequence[int]], words: Sequence[int]
) -> list[float]:
    """:func:`mean_log_likelihoods` for models with recurrent layers: one text after the other."""
    cache = new_decode_cache(model, None)
    append_tokens(model, cache, beginning[:-1])
    cache.mark()
    start, wanted, found = cache.length, torch.tensor(words, device=model.device), list[float]()
    for text in texts:
        ids = torch.tensor([beginning[-1], *text, *words], device=model.device)
        keep = torch.arange(len(ids) - len(words) - 1, len(ids) - 1, device=model.device)
        logits = model.forward(ids, cache, logits=keep)
        assert logits is not None
        scores = logits.float()
        found.append(float((scores.gather(1, wanted[:, None])[:, 0] - scores.logsumexp(dim=1)).mean()))
        cache.extend(len(ids))
        cache.rewind(start)
    return found


@torch.inference_mode()
def mean_log_likelihoods(
    model: Model, beginning: Sequence[int], texts: Sequence[Sequence[int]], words: Sequence[int]
) -> list[float]:
    """The mean log-probability per token of some words after ``beginning`` and each text.

    Args:
        model: a loaded model.
        beginning: token ids that all texts begin with; at least one.
        texts: token ids; a text may be empty.
        words: token ids; at least one.

    Returns:
        one number per text, at most 0.
    """
    if not texts:
        return []
    if model.spec.state_bytes:
        return _one_by_one(model, beginning, texts, words)
    lengths = [len(text) + len(words) for text in texts]
    store = PackedTexts(model, len(beginning), lengths)
    ids = [*beginning, *(i for text in texts for i in (*text, *words))]
    rows, first = list[int](), len(beginning)
    for text, length in zip(texts, lengths, strict=True):
        # The token that predicts the first of the words is the last before them.
        before = first + len(text) - 1 if text else len(beginning) - 1
        rows += [before, *range(first + len(text), first + length - 1)]
        first += length
    keep = torch.tensor(rows, device=model.device)
    logits = model.forward(torch.tensor(ids, device=model.device), store, logits=keep)
    assert logits is not None
    scores = logits.float().view(len(texts), len(words), -1)
    wanted = torch.tensor(words, device=model.device).expand(len(texts), -1)[..., None]
    found: list[float] = (scores.gather(2, wanted)[..., 0] - scores.logsumexp(dim=2)).mean(dim=1).tolist()
    return found
