"""Gathering of blocks from a store to staging slots: selection of the backend."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.gather import ref

__all__ = ["gather"]


def gather(store: Tensor, staged: Tensor, ids: Tensor, slots: Tensor, out: Tensor) -> Tensor:
    """See :func:`kvcli_kernels.gather.ref.gather`."""
    if on_triton(out):
        from kvcli_kernels.gather import triton

        return triton.gather(store, staged, ids, slots, out)
    return ref.gather(store, staged, ids, slots, out)
