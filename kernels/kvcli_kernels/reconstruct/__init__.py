"""Rotated keys from a low-rank factorization: selection of the backend."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.reconstruct import ref

__all__ = ["reconstruct"]


def reconstruct(
    coefficients: Tensor, basis: Tensor, ids: Tensor, pos: Tensor | None, cos: Tensor, sin: Tensor, out: Tensor
) -> Tensor:
    """See :func:`kvcli_kernels.reconstruct.ref.reconstruct`."""
    if on_triton(out):
        from kvcli_kernels.reconstruct import triton

        return triton.reconstruct(coefficients, basis, ids, pos, cos, sin, out)
    return ref.reconstruct(coefficients, basis, ids, pos, cos, sin, out)
