"""Causal attention for CPUs with native bfloat16 products: plain matrix products over blocks of queries.

torch's CPU flash kernel reaches a third of the machine's bfloat16 matrix speed, if the CPU has no AMX. A block of
queries of one KV head against all its keys fits the caches. So two products and a softmax per block suffice, in
bfloat16 with float32 accumulation inside each product. Logits are rounded to bfloat16 once; docs/results compares the
error with flash's.
"""

from functools import cache

import torch
from torch import Tensor

MAX_KEYS = 8192
"""Maximum number of keys: with more, a block of logits exceeds the caches and flash is faster."""

_BLOCK = 128


@cache
def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX): torch's flash kernel does so, and takes half the time."""
    return torch.cpu._is_amx_tile_supported()


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend with the newest ``m`` tokens to all ``n``.

    Args:
        q: ``[H, m, D]``, rotated.
        k: ``[H_kv, n, D]``, rotated; the last ``m`` keys belong to the queries' tokens.
        v: ``[H_kv, n, D]``.
        scale: factor on the logits.

    Returns:
        ``[H, m, D]``.
    """
    heads, m, dim = q.shape
    kv_heads, n, _ = k.shape
    group = heads // kv_heads
    out = q.new_empty(m, heads, dim)
    q = q * scale
    future = q.new_full((_BLOCK, _BLOCK), float("-inf")).triu_(1)
    for start in range(0, m, _BLOCK):
        stop = min(start + _BLOCK, m)
        rows, seen = stop - start, n - m + stop
        mask = future[:rows, :rows].repeat(group, 1)
        for head in range(kv_heads):
            mine = slice(head * group, (head + 1) * group)
            logits = q[mine, start:stop].reshape(group * rows, dim) @ k[head, :seen].T
            logits[:, seen - rows :] += mask
            weights = torch.softmax(logits, dim=-1)
            out[start:stop, mine] = (weights @ v[head, :seen]).view(group, rows, dim).transpose(0, 1)
    return out.transpose(0, 1)
