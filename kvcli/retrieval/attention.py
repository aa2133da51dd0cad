"""Attention of a question to the kept units: by position, and as a filter of the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvcli.engine.observer import Observer
from kvcli.planning.memory import visible_units
from kvcli.storage.dense import DenseLayer

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.models.model import Model


@torch.inference_mode()
def question_attention(model: Model, context: Context, ids: Sequence[int]) -> list[Tensor | None]:
    """How much some ids attend to each kept unit of a document.

    Args:
        model: the model.
        context: the document.
        ids: e.g. a question's.

    Returns:
        per layer float32 ``[H_kv, c]``, the logarithm of the largest attention of any query of the group; ``None`` for
        layers with a window of their own.
    """
    observer = Observer(model.rotary, context, [(len(ids), 0)], "prob")
    model.forward(torch.tensor(ids, device=model.device), observer, logits=False)
    return observer.labels


def attention_by_position(context: Context, labels: Sequence[Tensor | None]) -> Tensor:
    """:func:`question_attention` by place: float32 ``[seen]``, summed over layers and KV heads; 0 if nothing was
    kept."""
    total = torch.zeros(context.seen, device=context.layers[0].pos.device)
    for held, label in zip(context.layers, labels, strict=True):
        if label is not None:
            total.index_add_(0, held.pos.long().view(-1).to(total.device), label.exp().view(-1).to(total.device))
    return total


@torch.inference_mode()
def narrow_context(context: Context, labels: Sequence[Tensor | None], text: range) -> Context:
    """The part of a context that gets most attention. Units keep their positions, so the same tokens may follow.

    Args:
        context: a read document.
        labels: from :func:`question_attention`.
        text: places of which :func:`kvcli.planning.memory.visible_units` units per KV head stay. All units of other
            places stay: the beginning of the template, and turns of a chat.

    Returns:
        the context itself if all of it stays.
    """
    layers = list(context.layers)
    for i, (held, label) in enumerate(zip(context.layers, labels, strict=True)):
        if label is None or context.owner(i) != i:
            continue
        others = (held.pos < text.start) | (held.pos >= text.stop)
        count = visible_units(held.pos.shape[1], len(text)) + int(others.sum(1).max())
        if count >= held.pos.shape[1]:
            continue
        best = label.masked_fill(others, inf).topk(count, dim=1).indices.sort(dim=1).values
        k, v = held.dense()
        rows = best[..., None].expand(-1, -1, k.shape[2])
        few = k.gather(1, rows)
        layers[i] = DenseLayer(few, few if v is k else v.gather(1, rows), held.pos.gather(1, best), held.window)
    layers = [layers[context.owner(i)] for i in range(len(layers))]
    unchanged = all(new is held for new, held in zip(layers, context.layers, strict=True))
    return context if unchanged else replace(context, layers=layers)
