"""Attention over staged buffers: the one place that chooses between the backends."""

from torch import Tensor

from kvcli_kernels.attention import attention
from kvcli_kernels.backend import on_triton
from kvcli_kernels.staged import ref

__all__ = ["staged"]


def staged(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.staged.ref.staged`; without ``lengths`` all of the buffer is in use."""
    if lengths is None:
        return attention(q, k, v, scale, k.shape[1])
    if on_triton(q):
        from kvcli_kernels.staged import triton

        return triton.staged(q, k, v, scale, lengths)
    return ref.staged(q, k, v, scale, lengths)
