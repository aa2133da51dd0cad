"""Attention over kept units: backends and their selection."""

import torch
from torch import Tensor

from kvcli_kernels.attention import blocked, ref, sdpa
from kvcli_kernels.attention.latent import LatentScale
from kvcli_kernels.attention.ref import CappedScale, scaled
from kvcli_kernels.backend import for_cpu

__all__ = ["CAPPED_ROWS", "CappedScale", "LatentScale", "attention", "causal_attention", "scaled"]

CAPPED_ROWS = 64
"""Queries whose logits exist at the same time if no flash kernel of torch serves them. Such a kernel caps no logits,
and on a GPU it takes heads of at most 256 numbers.
"""

_GROUP = 8  # heads per KV head up to which numba's kernel is the faster one for a single token


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.attention.ref.attention`."""
    n = k.shape[1]
    if isinstance(scale, CappedScale) or (q.device.type == "cuda" and q.shape[2] > 256):
        rows = enumerate(torch.split(q, CAPPED_ROWS, dim=1))
        terms = [ref.attention(part, k, v, scale, q_start + i * CAPPED_ROWS, window) for i, part in rows]
        return torch.cat([o for o, _ in terms], dim=1), torch.cat([lse for _, lse in terms], dim=1)
    few = q.shape[1] == 1 and q.shape[0] <= _GROUP * k.shape[0]
    if few and q_start >= n - 1 and n and (window is None or q_start < window):
        kernels = for_cpu("attention") if q.device.type == "cpu" else None
        if kernels is not None and kernels.serves(q, k, v):
            return kernels.attention(q, k, v, scale)  # type: ignore[no-any-return]
    return sdpa.attention(q, k, v, scale, q_start, window)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Attend with the newest ``m`` tokens to all ``n``, without a log-sum-exp.

    Args:
        q: ``[H, m, D]``, rotated.
        k, v: ``[H_kv, n, D]``, keys rotated; the last ``m`` belong to the queries' tokens.
        scale: factor on the logits; a :class:`LatentScale` may unpack the latents ``k``.
        window: a query attends only to keys less than this far before it.

    Returns:
        ``[H, m, D]``, or ``[H, m, width]`` of unpacked values.
    """
    if isinstance(scale, LatentScale) and scale.unpacks(q):
        return scale.attend(q, k, causal_attention, window)
    m, n = q.shape[1], k.shape[1]
    plain = not isinstance(scale, CappedScale) and window is None and q.device.type == "cpu"
    if plain and m > 1 and n <= blocked.MAX_KEYS and q.dtype == torch.bfloat16 and not blocked.has_amx():
        return blocked.causal_attention(q, k, v, scale)
    return attention(q, k, v, scale, n - m, window)[0]
