"""Attention with its log-sum-exp as float32 einsums: the reference, and the fallback backend."""

import torch
from torch import Tensor


class CappedScale(float):
    """A factor on logits that are then capped to ``cap * tanh(logits / cap)`` (Gemma 2, arXiv:2408.00118)."""

    cap: float

    def __new__(cls, value: float, cap: float) -> "CappedScale":
        """A factor and a cap, in the units of the scaled logits."""
        made = super().__new__(cls, value)
        made.cap = cap
        return made


def scaled(products: Tensor, scale: float) -> Tensor:
    """Return logits of products of queries and keys: scaled, and capped if ``scale`` is a :class:`CappedScale`."""
    logits = products * scale
    return scale.cap * torch.tanh(logits / scale.cap) if isinstance(scale, CappedScale) else logits


def visible(m: int, n: int, q_start: int, window: int | None, device: torch.device) -> Tensor | None:
    """Mask of the ``n`` keys at positions 0.. that each of ``m`` queries at ``q_start..`` attends to: bool ``[m, n]``.

    ``None`` if every query attends to every key.
    """
    last = q_start + m - 1
    if q_start >= n - 1 and (window is None or last < window):
        return None
    distance = torch.arange(q_start, q_start + m, device=device)[:, None] - torch.arange(n, device=device)
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attend with queries at positions ``q_start..`` to keys at positions ``0..n-1``.

    Args:
        q: ``[H, m, D]``, rotated.
        k: ``[H_kv, n, D]``, rotated.
        v: ``[H_kv, n, D]``.
        scale: factor on the logits; a :class:`CappedScale` caps them too.
        q_start: position of the first query, counted from the first key. ``n - m`` is causal attention with the queries
            last; with ``n`` or more, every query attends to every key.
        window: a query attends only to keys less than this far before it.

    Returns:
        ``(o [H, m, D] in q's dtype, lse [H, m] float32)``; ``lse = -inf`` and ``o = 0`` for queries without keys.
    """
    heads, m, dim = q.shape
    kv_heads, n, _ = k.shape
    grouped = q.float().reshape(kv_heads, heads // kv_heads, m, dim)
    logits = scaled(torch.einsum("hgmd,hnd->hgmn", grouped, k.float()), scale)
    mask = visible(m, n, q_start, window, q.device)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.unsqueeze(-1)).nan_to_num(0.0)
    o = torch.einsum("hgmn,hnd->hgmd", weights, v.float())
    return o.reshape(heads, m, v.shape[-1]).to(q.dtype), lse.reshape(heads, m)
