"""Choosing blocks of keys by landmarks: the one place that chooses between the backends."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.landmarks import ref

__all__ = ["choose"]


def choose(q: Tensor, landmarks: Tensor, scale: float, count: int) -> Tensor:
    """See :func:`kvcli_kernels.landmarks.ref.choose`."""
    if on_triton(q):
        from kvcli_kernels.landmarks import triton

        return triton.choose(q, landmarks, scale, count)
    return ref.choose(q, landmarks, scale, count)
