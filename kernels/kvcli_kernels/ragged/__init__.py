"""Attention over heads of unequal lengths: the one place that chooses between the backends."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.ragged import ref

__all__ = ["ragged"]


def ragged(q: Tensor, k: Tensor, v: Tensor, indptr: Tensor, scale: float, longest: int) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.ragged.ref.ragged`."""
    if on_triton(q):
        from kvcli_kernels.ragged import triton

        return triton.ragged(q, k, v, indptr, scale, longest)
    return ref.ragged(q, k, v, indptr, scale, longest)
