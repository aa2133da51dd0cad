"""Selection of blocks of keys by landmarks: selection of the backend."""

from torch import Tensor

from kvcli_kernels.attention import CappedScale
from kvcli_kernels.backend import on_triton
from kvcli_kernels.landmarks import ref

__all__ = ["select_blocks"]


def select_blocks(q: Tensor, landmarks: Tensor, scale: float, count: int) -> Tensor:
    """See :func:`kvcli_kernels.landmarks.ref.select_blocks`."""
    if on_triton(q) and not isinstance(scale, CappedScale):
        from kvcli_kernels.landmarks import triton

        return triton.select_blocks(q, landmarks, scale, count)
    return ref.select_blocks(q, landmarks, scale, count)
