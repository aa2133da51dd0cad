"""Attention over packed keys and values through dequantization, in float32."""

from torch import Tensor

from kvcli_kernels.attention import ref
from kvcli_kernels.quantize.packed import Packed
from kvcli_kernels.quantize.ref import dequantize


def packed_attention(q: Tensor, k: Packed, v: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with every query to every key.

    Args:
        q: ``[H, m, D]``, rotated.
        k, v: ``[H_kv, n, D]``, packed; keys rotated.
        scale: factor on the logits; a :class:`kvcli_kernels.attention.CappedScale` caps them too.

    Returns:
        ``(o [H, m, D] in q's dtype, lse [H, m] float32)``; ``lse = -inf`` and ``o = 0`` without keys.
    """
    return ref.attention(q, dequantize(k), dequantize(v), scale, k.codes.shape[1])
