"""One decode step of several answers in one forward pass: the weights are read once for all of them.

:func:`kvcli.engine.generate.generate` yields a :class:`Paused` before each step, if it is asked to. Whoever runs
several answers collects these, and :func:`step_together` computes their logits. An answer that gets none steps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcli.cache.batch_cache import BatchCache
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.decode_step import recordable
from kvcli.events import Token
from kvcli.models.model import Model
from kvcli_kernels.linear import FEW_PACKED

MOST = FEW_PACKED
"""Answers of a forward pass at most. With more rows, a model with packed weights takes its wider ones, which say
something else."""

_LAYER = 20 << 20
"""Bytes of weights read in the time that Python needs to call a layer's operations (docs/log.md)."""


@dataclass(eq=False)
class Step:
    """A decode step that an answer waits for.

    Attributes:
        model, cache, token: as for :data:`kvcli.engine.decode_step.DecodeStep`; the cache has room for the token.
        fewest: from :func:`fewest_answers`.
        logits: the next token's, ``[vocab]``, once they are computed.
    """

    model: Model
    cache: DecodeCache
    token: Tensor
    fewest: int = 2
    logits: Tensor | None = None


@dataclass(frozen=True)
class Paused(Token):
    """No token, but an answer that waits for a step; whoever takes it for a token reads an empty text."""

    step: Step


def fewest_answers(model: Model, cache: DecodeCache) -> int | None:
    """From how many answers on a forward pass of all is faster than a step of each; ``None`` if never.

    Weights are read once for all, but a recorded step needs no Python. So it takes many answers of a small model, and
    two of a large one.

    On a GPU they are not measured. Recurrent layers take one sequence. Storages outside the device's memory, or that
    select units, are opened for one answer; queries of several do not meet a fold.
    """
    if cache.context is not None and cache.context.folded is not None:
        return None
    layers = () if cache.context is None else cache.context.layers
    opened = any(layer.selects or layer.host_nbytes or layer.shared_nbytes for layer in layers)
    if model.device.type != "cpu" or cache.recurrent or opened:
        return None
    return 2 + (model.spec.layers * _LAYER // max(1, model.read_bytes) if recordable(model, cache) else 0)


def step_together(steps: Sequence[Step]) -> None:
    """Compute the logits of steps of one model, in as few forward passes as possible; does not extend the caches.

    A step with too few others in its forward pass gets no logits.
    """
    by_length: dict[int | None, list[Step]] = {}
    for step in steps:
        length = step.cache.max_position if step.model.rotary.length_dependent else None
        by_length.setdefault(length, []).append(step)
    for alike in by_length.values():
        passes = -(-len(alike) // MOST)
        for batch in (alike[i::passes] for i in range(passes)):
            if len(batch) >= max(step.fewest for step in batch):
                cache = BatchCache([step.cache for step in batch])
                with torch.inference_mode():
                    logits = batch[0].model.forward(torch.cat([step.token for step in batch]), cache, logits="all")
                assert logits is not None
                for step, row in zip(batch, logits, strict=True):
                    step.logits = row
