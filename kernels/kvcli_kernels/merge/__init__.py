"""Merge of attention terms over disjoint sets of keys: selection of the backend."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.merge import ref

__all__ = ["merge"]


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.merge.ref.merge`."""
    if on_triton(a[0]):
        from kvcli_kernels.merge import triton

        return triton.merge(a, b)
    return ref.merge(a, b)
