"""Attention over buffers with a length per head, in float32."""

import torch
from torch import Tensor

from kvcli_kernels.attention.ref import scaled


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Attend with every query to the first ``lengths[h]`` keys of its KV head.

    Args:
        q: ``[H, m, D]``, rotated.
        k, v: ``[H_kv, n, D]``; entries after a head's length may be any finite number.
        scale: factor on the logits; a :class:`kvcli_kernels.attention.CappedScale` caps them too.
        lengths: int64 ``[H_kv]``.

    Returns:
        ``(o [H, m, D] in q's dtype, lse [H, m] float32)``; ``lse = -inf`` and ``o = 0`` if a length is 0.
    """
    heads, m, dim = q.shape
    kv_heads, n, _ = k.shape
    grouped = q.float().reshape(kv_heads, heads // kv_heads, m, dim)
    logits = scaled(torch.einsum("hgmd,hnd->hgmn", grouped, k.float()), scale)
    unused = torch.arange(n, device=k.device) >= lengths[:, None]
    logits = logits.masked_fill(unused[:, None, None], float("-inf"))
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.unsqueeze(-1)).nan_to_num(0.0)
    o = torch.einsum("hgmn,hnd->hgmd", weights, v.float())
    return o.reshape(heads, m, dim).to(q.dtype), lse.reshape(heads, m)
