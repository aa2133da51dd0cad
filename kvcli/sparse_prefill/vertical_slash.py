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


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    vertical: int | Tensor,
    slash: int | Tensor,
    fixed: Tensor | None = None,
) -> Tensor:
    """Attend causally to ``vertical`` columns and ``slash`` diagonals per head, chosen from the last queries.

    Args:
        q: ``[H, m, D]``, rotated queries of the last ``m`` keys.
        k, v: ``[H_kv, n, D]``, rotated keys, and values.
        scale: factor on the logits.
        vertical, slash: numbers of columns and diagonals, what is always chosen included; ``[H]`` if heads differ.
        fixed: bool ``[H]``, heads with the first columns and the nearest diagonals instead.

    Returns:
        ``[H, m, D]``.
    """
    columns, diagonals = pattern(q, k, scale, vertical, slash, fixed)
    start, parts = k.shape[1] - q.shape[1], []
    for first in range(0, q.shape[1], BLOCK):
        queries = q[:, first : first + BLOCK]
        rows = range(start + first, start + first + queries.shape[1])
        parts.append(_attend_chosen(queries, k, v, scale, chosen(columns, diagonals, rows), rows))
    return torch.cat(parts, dim=1)


def pattern(
    q: Tensor, k: Tensor, scale: float, vertical: int | Tensor, slash: int | Tensor, fixed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose columns and distances from the weights of the last queries: bool ``[H, n]`` each."""
    columns, diagonals = sums(weights(q[:, -ROWS:], k, scale))
    if fixed is not None:
        columns[fixed] = diagonals[fixed] = -torch.arange(k.shape[1], dtype=columns.dtype, device=k.device)
    columns[:, :_SINKS], diagonals[:, :_NEAREST] = torch.inf, torch.inf
    counts = (torch.as_tensor(count, device=k.device) for count in (vertical, slash))
    most, nearest = (n.clamp_min(least) for n, least in zip(counts, (_SINKS, _NEAREST), strict=True))
    return _largest(columns, most), _largest(diagonals, nearest)


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


def weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Attention weights of the queries of the last keys: float32 ``[H, rows, n]``."""
    (heads, rows, dim), (kv_heads, n, _) = q.shape, k.shape
    logits = scaled((q.reshape(kv_heads, -1, dim) @ k.transpose(1, 2)).float().view(heads, rows, n), scale)
    later = torch.ones(rows, n, dtype=torch.bool, device=q.device).triu(n - rows + 1)
    return logits.masked_fill_(later, -torch.inf).softmax(-1)


def _largest(values: Tensor, counts: Tensor) -> Tensor:
    """Mark the largest, one number for all heads or one each: of equal ones the first, so that more include fewer."""
    order = values.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(values.shape[1], device=values.device) < counts.view(-1, 1)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, first.expand_as(order))


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
