"""Attention over staged buffers."""

from torch import Tensor

from kvcli_kernels.attention import attention
from kvcli_kernels.staged import ref


def staged(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.staged.ref.staged`; without ``lengths`` all of the buffer is in use."""
    if lengths is None:
        return attention(q, k, v, scale, k.shape[1])
    return ref.staged(q, k, v, scale, lengths)


__all__ = ["staged"]
