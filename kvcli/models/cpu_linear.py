"""Linear layers with a fast product for one row, which decoding on a CPU spends its time in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kvcli_kernels.linear import linear


class CpuDecodeLinear(nn.Linear):
    """torch's linear layer with kvcli's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def install(module: nn.Module) -> Callable[[bool], None]:
    """Find a model's plain bfloat16 layers on the CPU.

    Layers of other classes (quantised ones) and those that accelerate copies to the GPU stay as they are.

    Returns:
        a switch: ``switch(True)`` makes them :class:`CpuDecodeLinear`, ``switch(False)`` plain again.
    """
    layers = [m for m in module.modules() if type(m) is nn.Linear and not hasattr(m, "_hf_hook")]
    layers = [m for m in layers if m.weight.dtype == torch.bfloat16 and m.weight.device.type == "cpu"]

    def switch(on: bool) -> None:
        for layer in layers:
            layer.__class__ = CpuDecodeLinear if on else nn.Linear

    return switch
