"""Attention with its log-sum-exp through torch's flash kernels (CPU and CUDA).

``torch.nn.functional.scaled_dot_product_attention`` drops the log-sum-exp that its kernels compute, so this module
calls the operators directly. Two shapes cover all uses of the cache:

- *rectangular*: every query attends to every key. The query group is folded into the query length, so that KV heads
  are never repeated.
- *square*: m queries over their own m keys, causal.

Causal attention over a longer context merges the two.
"""

import torch
from torch import Tensor

from kvcli_kernels.attention import ref
from kvcli_kernels.merge import merge

_aten = torch.ops.aten


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.attention.ref.attention`."""
    m, n = q.shape[1], k.shape[1]
    if not _has_flash(q) or n == 0 or q_start < 0:
        return ref.attention(q, k, v, scale, q_start, window)
    if window is not None and q_start + m > window:
        return _windowed(q, k, v, scale, q_start, window)
    if q_start >= n - 1:
        return _rectangular(q, k, v, scale)
    if q_start != n - m:
        return ref.attention(q, k, v, scale, q_start, window)
    if n == m:
        return _square(q, k, v, scale)
    return merge(
        _square(q, k[:, q_start:], v[:, q_start:], scale), _rectangular(q, k[:, :q_start], v[:, :q_start], scale)
    )


def _has_flash(q: Tensor) -> bool:
    return q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16))


def _flash(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Call the flash kernel: ``[H, m, D]`` over ``[H, n, D]``, equal head counts."""
    q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
    if q.device.type == "cpu":
        o, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    else:
        o, lse = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
    return o[0], lse[0]


def _rectangular(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads, m, dim = q.shape
    kv_heads = k.shape[0]
    o, lse = _flash(q.reshape(kv_heads, heads // kv_heads * m, dim), k, v, scale, causal=False)
    return o.reshape(heads, m, dim), lse.reshape(heads, m)


def _square(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    group = q.shape[0] // k.shape[0]
    return _flash(q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0), scale, causal=True)


def _windowed(q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, window: int) -> tuple[Tensor, Tensor]:
    """Attend with a window: first drop keys outside every query's window, so that the bias is at most ``[m, window +
    m]``."""
    m, n = q.shape[1], k.shape[1]
    first = max(0, q_start - window + 1)
    k, v, q_start = k[:, first:], v[:, first:], q_start - first
    if k.shape[1] == 0 or q.device.type != "cpu":
        return ref.attention(q, k, v, scale, q_start, window)
    mask = ref.visible(m, n - first, q_start, window, q.device)
    if mask is not None and not bool(mask.any(-1).all()):
        return ref.attention(q, k, v, scale, q_start, window)  # a row without keys: flash would return NaN
    group = q.shape[0] // k.shape[0]
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))[None, None]
    return _flash(q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0), scale, False, bias)
