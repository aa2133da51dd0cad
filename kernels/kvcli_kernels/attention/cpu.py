"""Attention of a single token for CPUs, compiled by numba: each key and value is read once for a group of query heads.

torch's flash kernel is made for many queries: with one it reaches half the memory's bandwidth.
"""

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import recording, team, team_loop
from kvcli_kernels.attention.one_token import STRETCH, scratch


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel serves these tensors: one token on a CPU, float32 or bfloat16, no gradients."""
    alike = q.dtype == k.dtype == v.dtype and q.dtype in (torch.float32, torch.bfloat16)
    return q.shape[1] == 1 and alike and q.device.type == "cpu" and not torch.is_grad_enabled()


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attend with one token to all keys, or to the first ``lengths[h]`` of each KV head.

    Args:
        q: ``[H, 1, D]``.
        k, v: ``[H_kv, n, D]``.
        scale: factor on the logits.
        lengths: int64 ``[H_kv]``.

    Returns:
        ``(o [H, 1, D] in q's dtype, lse [H, 1] float32)``.
    """
    (heads, _, dim), (kv_heads, n, _) = q.shape, k.shape
    q, (k, v) = q.contiguous(), (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    lengths = torch.full((kv_heads,), n) if lengths is None else lengths.contiguous()
    o, lse = torch.empty(q.shape, dtype=q.dtype), torch.empty(heads, 1)
    parts = kv_heads * max(1, -(-n // STRETCH))
    sums = np.empty((parts, scratch(heads // kv_heads, dim)), np.float32)
    sizes = parts, team_loop.ATTENTION, q.dtype == torch.bfloat16, kv_heads, heads // kv_heads, dim
    strides = k.stride(0), k.stride(1), v.stride(0), v.stride(1)
    words = *sizes, *strides, int(np.float32(scale).view(np.int32)), sums.ctypes.data
    size = kv_heads * n * dim * (k.element_size() + v.element_size())
    recording.run(team.task(words, (q, k, v, lengths, o, lse), size, sums), (q, k, v, lengths), (o, lse))
    return o, lse
