"""A few rows times a weight: the backends, and the one place that chooses between them."""

import torch
from torch import Tensor
from torch.nn import functional

from kvcli_kernels.backend import for_cpu

__all__ = ["linear", "prepare"]

_FEW = 4  # rows, up to which the weight's way from memory is what takes the time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`kvcli_kernels.linear.ref.linear`. For readings and answers: gradients go through torch's own."""
    bf16 = x.dtype == weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    few = 0 < x.numel() <= _FEW * x.shape[-1] and not torch.is_grad_enabled()
    if bf16 and few and (kernels := for_cpu("linear")) is not None:
        return kernels.linear(x, weight, bias)  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def prepare() -> None:
    """Has kernels for the CPU, and the compiler they come from, in memory before they are needed."""
    with torch.inference_mode():
        linear(torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.bfloat16))
