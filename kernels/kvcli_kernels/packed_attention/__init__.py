"""Attention directly on packed keys and values: backends and their selection."""

from torch import Tensor

from kvcli_kernels import recording
from kvcli_kernels.attention import CappedScale, attention
from kvcli_kernels.backend import for_cpu, on_triton
from kvcli_kernels.merge import merge
from kvcli_kernels.packed_attention import fused_scales, ref
from kvcli_kernels.quantize import Packed, dequantize

__all__ = ["packed_attention"]

_FEW = 16  # maximum query rows of a KV head for which unpacking costs more than the products
_GPU_FEW = 64  # the same on a GPU: with more rows, several programs unpack the same keys
_MANY = 1 << 15  # minimum codes of keys for which a compiled kernel saves more than its call costs
_BLOCK = 8192  # keys unpacked at a time for more query rows


def packed_attention(q: Tensor, k: Packed, v: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.packed_attention.ref.packed_attention`."""
    n = k.codes.shape[1]
    if n == 0:
        return ref.packed_attention(q, k, v, scale)
    rows, capped = q.shape[0] // k.codes.shape[0] * q.shape[1], isinstance(scale, CappedScale)
    if on_triton(q) and rows <= _GPU_FEW and not capped:
        from kvcli_kernels.packed_attention import triton

        return triton.packed_attention(q, k, v, scale)
    if q.device.type == "cpu" and rows <= _FEW and v.tile[0] == 1:
        many = k.codes.numel() * 8 // k.bits >= _MANY
        kernels = for_cpu("packed_attention") if many and not capped else None
        if kernels is not None and kernels.serves(k, v):
            return kernels.packed_attention(q, k, v, scale)  # type: ignore[no-any-return]
        return recording.attend(q, lambda: fused_scales.packed_attention(q, k, v, scale))
    term = None
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        keys, values = (dequantize(t.tokens(start, stop), q.dtype) for t in (k, v))
        part = attention(q, keys, values, scale, stop - start)
        term = part if term is None else merge(term, part)
    assert term is not None
    return term
