"""Attention over buffers with a length per head: selection of the backend."""

from torch import Tensor

from kvcli_kernels.attention import CappedScale, attention
from kvcli_kernels.backend import for_cpu, on_triton
from kvcli_kernels.varlen import ref

__all__ = ["varlen_attention"]


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.varlen.ref.varlen_attention`; without ``lengths`` the whole buffer is in use."""
    if lengths is None:
        return attention(q, k, v, scale, k.shape[1])
    if isinstance(scale, CappedScale):
        return ref.varlen_attention(q, k, v, scale, lengths)
    if on_triton(q):
        from kvcli_kernels.varlen import triton

        return triton.varlen_attention(q, k, v, scale, lengths)
    kernels = for_cpu("attention") if q.device.type == "cpu" and q.shape[1] == 1 else None
    if kernels is not None and kernels.serves(q, k, v):
        return kernels.attention(q, k, v, scale, lengths)  # type: ignore[no-any-return]
    return ref.varlen_attention(q, k, v, scale, lengths)
