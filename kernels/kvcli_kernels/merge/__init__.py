"""Merge of attention terms over disjoint sets of keys: selection of the backend."""

import torch
from torch import Tensor

from kvcli_kernels.backend import for_cpu, on_triton
from kvcli_kernels.merge import ref

__all__ = ["merge"]

_FEW = 1 << 16
"""Maximum numbers for which one compiled call is faster than torch's."""


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.merge.ref.merge`."""
    if on_triton(a[0]):
        from kvcli_kernels.merge import triton

        return triton.merge(a, b)
    compiled = for_cpu("merge") if _few(a[0], b[0]) else None
    return ref.merge(a, b) if compiled is None else compiled.merge(a, b)


def _few(a: Tensor, b: Tensor) -> bool:
    plain = a.device.type == "cpu" and a.dtype == b.dtype and a.dtype in (torch.float32, torch.bfloat16)
    return plain and a.numel() <= _FEW and not torch.is_grad_enabled()
