"""A few rows times a weight: backends and their selection."""

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from kvcli_kernels.backend import for_cpu

__all__ = ["FEW_EXPERT", "FEW_PACKED", "experts", "linear", "packed", "prepare", "serves"]

FEW_PACKED = 16
"""Maximum rows of a product with a packed weight."""

FEW_EXPERT = 4
"""Maximum rows for which a product with a packed matrix of an expert is faster than unpacking it."""

_FEW = {torch.bfloat16: 4, torch.float32: 16}
"""Maximum rows for which the compiled kernel is faster than torch's product in the rows' dtype."""


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled kernel multiplies these rows: few, on a CPU, a bfloat16 weight, no gradients."""
    few = 0 < x.numel() <= _FEW.get(x.dtype, 0) * x.shape[-1] and not torch.is_grad_enabled()
    bf16 = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return few and bf16 and for_cpu("linear") is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`kvcli_kernels.linear.ref.linear`. For inference; with gradients torch's own product is used."""
    if serves(x, weight) and (kernels := for_cpu("linear")) is not None:
        return kernels.linear(x, weight, bias)  # type: ignore[no-any-return]
    return functional.linear(x, weight.to(x.dtype), bias)


def packed() -> ModuleType | None:
    """:mod:`kvcli_kernels.linear.packed`, if its compiler is installed."""
    return for_cpu("linear", "packed") if for_cpu("team_loop", "") is not None else None


def experts() -> ModuleType | None:
    """:mod:`kvcli_kernels.linear.experts`, if its compiler is installed."""
    return for_cpu("linear", "experts")


def prepare() -> None:
    """Load CPU kernels and their compiler before they are needed."""
    with torch.inference_mode():
        linear(torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.bfloat16))
