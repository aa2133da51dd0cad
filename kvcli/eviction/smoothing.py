"""Smooth scores over neighbours so that phrases survive, not isolated tokens.

The best isolated tokens of a long text mislead a model even if they contain the answer: it continues its own system
message (docs/log.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.eviction.chunk import Chunk


def mean(scores: Tensor, width: int) -> Tensor:
    """Average each score with ``width // 2`` neighbours on either side, as far as they exist.

    Args:
        scores: float32 ``[H_kv, n]``.
        width: odd.
    """
    if width == 1:
        return scores
    return F.avg_pool1d(scores, width, stride=1, padding=width // 2, count_include_pad=False)


def maximum(scores: Tensor, width: int) -> Tensor:
    """Replace each score by the largest of its neighbourhood; arguments as for :func:`mean`."""
    return F.max_pool1d(scores, width, stride=1, padding=width // 2)


def smooth(chunk: Chunk, new_scores: Tensor, width: int) -> Tensor:
    """Smooth the scores of all units, independent of the chunk size: float32 ``[H_kv, kept + new]``.

    The last units before the chunk get their final scores now, with their later neighbours; until then at least ``width
    // 2`` stabilizers should keep them.

    Args:
        chunk: the chunk; its state carries the last ``width - 1`` scores to the next one.
        new_scores: ``[H_kv, new]``, the chunk's unsmoothed scores.
        width: see :func:`mean`.
    """
    new_scores = new_scores.float()
    if width == 1:
        return torch.cat([chunk.scores, new_scores], dim=1)
    previous = chunk.state.get("newest", new_scores[:, :0])
    window = torch.cat([previous, new_scores], dim=1)
    scores = mean(window, width)
    chunk.state["newest"] = window[:, 1 - width :].clone()
    first = chunk.start - previous.shape[1]
    kept = chunk.pos[:, : chunk.kept].long()
    unsettled = kept >= chunk.start - min(width // 2, previous.shape[1])
    final = scores.gather(1, (kept - first).clamp_min(0)) if previous.shape[1] else chunk.scores
    return torch.cat([torch.where(unsettled, final, chunk.scores), scores[:, previous.shape[1] :]], dim=1)
