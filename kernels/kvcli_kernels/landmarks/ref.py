"""Selection of blocks of keys by one landmark per block, in float32."""

import torch
from torch import Tensor

from kvcli_kernels.attention.ref import scaled

_QUERIES = 64  # queries whose logits exist at a time


def select_blocks(q: Tensor, landmarks: Tensor, scale: float, count: int) -> Tensor:
    """Select the blocks whose landmarks get the most attention.

    A block's softmax weight among all landmarks is summed over the queries of a head. The block's vote is the maximum
    of these sums over the query group (ShadowKV, arXiv 2410.21465).

    Args:
        q: ``[H, m, D]``, rotated.
        landmarks: ``[H_kv, N, D]``.
        scale: factor on the logits; a :class:`kvcli_kernels.attention.CappedScale` caps them too.
        count: number of blocks to select.

    Returns:
        int64 ``[H_kv, count]``, ascending.
    """
    return votes(q, landmarks, scale).topk(count, dim=-1).indices.sort(dim=-1).values


def votes(q: Tensor, landmarks: Tensor, scale: float) -> Tensor:
    """Compute votes, float32 ``[H_kv, N]``; arguments as for :func:`select_blocks`."""
    heads, m, dim = q.shape
    kv_heads, n, _ = landmarks.shape
    grouped = q.float().reshape(kv_heads, heads // kv_heads, m, dim)
    found = q.new_zeros(kv_heads, heads // kv_heads, n, dtype=torch.float32)
    for part in torch.split(grouped, _QUERIES, dim=2):
        logits = scaled(torch.einsum("hgmd,hnd->hgmn", part, landmarks.float()), scale)
        found += logits.softmax(-1).sum(2)
    return found.amax(1)
