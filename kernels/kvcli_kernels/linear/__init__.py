"""A few rows times a weight: backends and their selection."""

import torch
from torch import Tensor
from torch.nn import functional

from kvcli_kernels.backend import for_cpu

__all__ = ["linear", "prepare"]

_FEW = 4  # maximum rows for which reading the weight from memory dominates the time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`kvcli_kernels.linear.ref.linear`. For inference; with gradients torch's own product is used."""
    bf16 = x.dtype == weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    few = 0 < x.numel() <= _FEW * x.shape[-1] and not torch.is_grad_enabled()
    if bf16 and few and (kernels := for_cpu("linear")) is not None:
        return kernels.linear(x, weight, bias)  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def prepare() -> None:
    """Load CPU kernels and their compiler before they are needed."""
    with torch.inference_mode():
        linear(torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.bfloat16))
