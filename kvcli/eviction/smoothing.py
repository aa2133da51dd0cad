"""Scores smoothed over neighbours, so that spans survive rather than single words.

A cache of the best single words of a long text misleads a model even where it holds the answer: it goes on from its
own system message (docs/log.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.eviction.base import Chunk


def mean(scores: Tensor, width: int) -> Tensor:
    """Mean of each score and its neighbours, ``width // 2`` on either side as far as they exist.

    Args:
        scores: float32 ``[H_kv, n]``.
        width: odd.
    """
    if width == 1:
        return scores
    return F.avg_pool1d(scores, width, stride=1, padding=width // 2, count_include_pad=False)


def smooth(chunk: Chunk, own: Tensor, width: int) -> Tensor:
    """Smoothed scores of all units at hand, whatever the chunks: float32 ``[H_kv, kept + new]``.

    The newest units before the chunk get their final score only now that their later neighbours are known; until
    then stabilizers, ``width // 2`` of them or more, should keep them.

    Args:
        chunk: the chunk; its state carries the last ``width - 1`` scores on to the next one.
        own: ``[H_kv, new]``, the chunk's scores before smoothing.
        width: see :func:`mean`.
    """
    own = own.float()
    if width == 1:
        return torch.cat([chunk.scores, own], dim=1)
    before = chunk.state.get("newest", own[:, :0])
    line = torch.cat([before, own], dim=1)
    scores = mean(line, width)
    chunk.state["newest"] = line[:, 1 - width :].clone()
    first = chunk.start - before.shape[1]
    kept = chunk.pos[:, : chunk.kept].long()
    late = kept >= chunk.start - min(width // 2, before.shape[1])
    final = scores.gather(1, (kept - first).clamp_min(0)) if before.shape[1] else chunk.scores
    return torch.cat([torch.where(late, final, chunk.scores), scores[:, before.shape[1] :]], dim=1)
