"""Choosing blocks of keys by one landmark per block, in float32."""

import torch
from torch import Tensor


def choose(q: Tensor, landmarks: Tensor, scale: float, count: int) -> Tensor:
    """The blocks whose landmarks queries look at most.

    A block's vote is its softmax weight among all landmarks, summed over the queries of a head, of the query head in
    the group that wants it most (ShadowKV, arXiv 2410.21465).

    Args:
        q: ``[H, m, D]``, rotated.
        landmarks: ``[H_kv, N, D]``.
        scale: factor on the logits.
        count: how many of the N blocks.

    Returns:
        int64 ``[H_kv, count]``, ascending.
    """
    heads, m, dim = q.shape
    kv_heads = landmarks.shape[0]
    grouped = q.float().reshape(kv_heads, heads // kv_heads, m, dim)
    logits = torch.einsum("hgmd,hnd->hgmn", grouped, landmarks.float()) * scale
    votes = logits.softmax(-1).sum(2).amax(1)
    return votes.topk(count, dim=-1).indices.sort(dim=-1).values
