"""Attention to columns and diagonals of keys, estimated from a chunk's last queries (MInference)."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcli_kernels.attention import scaled

BLOCK = 64
"""Queries that share one set of keys, and keys of a block that a diagonal touches."""

ROWS = 64
"""Queries that the pattern is estimated from."""

_SINKS, _NEAREST = 30, 100  # columns and distances that are always chosen


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, vertical: int, slash: int) -> Tensor:
    """Attend causally to ``vertical`` columns and ``slash`` diagonals per head, chosen from the last queries.

    Args:
        q: ``[H, m, D]``, rotated queries of the last ``m`` keys.
        k, v: ``[H_kv, n, D]``, rotated keys, and values.
        scale: factor on the logits.
        vertical, slash: numbers of columns and diagonals, what is always chosen included.

    Returns:
        ``[H, m, D]``.
    """
    columns, diagonals = pattern(q, k, scale, vertical, slash)
    start, parts = k.shape[1] - q.shape[1], []
    for first in range(0, q.shape[1], BLOCK):
        queries = q[:, first : first + BLOCK]
        rows = range(start + first, start + first + queries.shape[1])
        parts.append(_attend_chosen(queries, k, v, scale, chosen(columns, diagonals, rows), rows))
    return torch.cat(parts, dim=1)


def pattern(q: Tensor, k: Tensor, scale: float, vertical: int, slash: int) -> tuple[Tensor, Tensor]:
    """Choose columns and distances from the weights of the last queries: bool ``[H, n]`` each."""
    columns, diagonals = sums(_weights(q[:, -ROWS:], k, scale))
    columns[:, :_SINKS], diagonals[:, :_NEAREST] = torch.inf, torch.inf
    return _largest(columns, max(vertical, _SINKS)), _largest(diagonals, max(slash, _NEAREST))


def sums(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum attention weights ``[H, r, n]`` of the last ``r`` queries by key and by distance: ``[H, n]`` each."""
    heads, rows, n = weights.shape
    distance = torch.arange(n - rows, n, device=weights.device)[:, None] - torch.arange(n, device=weights.device)
    diagonals = weights.new_zeros(heads, n)
    diagonals.index_add_(1, distance.clamp_(min=0).view(-1), weights.reshape(heads, -1))  # later keys weigh nothing
    return weights.sum(1), diagonals


def chosen(columns: Tensor, diagonals: Tensor, rows: range) -> Tensor:
    """Return the keys of a block of queries at slots ``rows``: bool ``[H, rows.stop]``.

    All chosen columns, and each block of keys in which a query of ``rows`` has a key at a chosen distance.
    """
    begin = torch.arange(0, rows.stop, BLOCK, device=columns.device)
    before = torch.nn.functional.pad(diagonals.int().cumsum(1), (1, 0))
    low, high = (rows.start - begin - BLOCK + 1).clamp_(min=0), (rows.stop - begin).clamp_(min=0)
    touched = before[:, high] > before[:, low]
    return touched.repeat_interleave(BLOCK, dim=1)[:, : rows.stop] | columns[:, : rows.stop]


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    (heads, rows, dim), (kv_heads, n, _) = q.shape, k.shape
    logits = scaled((q.reshape(kv_heads, -1, dim) @ k.transpose(1, 2)).float().view(heads, rows, n), scale)
    later = torch.ones(rows, n, dtype=torch.bool, device=q.device).triu(n - rows + 1)
    return logits.masked_fill_(later, -torch.inf).softmax(-1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Mark the largest: of equal ones the first, so that more of them include fewer."""
    order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)


def _attend_chosen(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, rows: range) -> Tensor:
    """Attend to chosen keys ``[H, rows.stop]``, gathered; heads with fewer than others have others masked."""
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    counts = mask.sum(1)
    head, slot = mask.nonzero(as_tuple=True)
    slots = torch.zeros(heads, int(counts.max()), dtype=torch.long, device=q.device)
    slots[head, (mask.cumsum(1) - 1)[head, slot]] = slot
    kv_head = torch.arange(heads, device=q.device)[:, None] // group
    keys, values = k[kv_head, slots], v[kv_head, slots]
    at = torch.arange(rows.start, rows.stop, device=q.device)
    hidden = slots[:, None] > at[:, None]
    hidden |= (torch.arange(slots.shape[1], device=q.device) >= counts[:, None])[:, None]
    weights = scaled((q @ keys.transpose(1, 2)).float(), scale).masked_fill_(hidden, -torch.inf).softmax(-1)
    return weights.to(v.dtype) @ values
