"""Compaction of kept units: selection of the backend."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.compact import ref
from kvcli_kernels.compact.ref import Units

__all__ = ["Units", "compact"]


def compact(index: Tensor, units: Units, out: Units) -> None:
    """See :func:`kvcli_kernels.compact.ref.compact`."""
    if on_triton(units.k) and out.k.device == units.k.device:
        from kvcli_kernels.compact import triton

        triton.compact(index, units, out)
    else:
        ref.compact(index, units, out)
