"""bitsandbytes' 4-bit layers on a CPU: right for every shape, and fast for few rows and for many.

bitsandbytes 0.50 unpacks the matrix for each product; a row that ends within a block of 64 numbers gets wrong scales on
CPUs with AVX-512. On CPUs with bfloat16 instructions it multiplies the codes instead, in an order of their own. For one
row that is 30 times as fast; for hundreds it is several times slower than unpacking, and odd shapes fail.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional

from kvcli_kernels.backend import for_cpu

_FEW = 64
"""Maximum rows that are multiplied with codes."""


class CpuNf4Linear(Linear4bit):  # type: ignore[misc]
    """A layer with one matrix ``[N, K]`` in 4 bits, for inference on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        state: Any = self.weight.quant_state
        ordered = getattr(state, "packing_format_for_cpu", False)
        if self.support_avx512bf16_for_cpu and x.numel() <= _FEW * x.shape[-1]:
            return super().forward(x)  # type: ignore[no-any-return]
        if ordered:
            weight = _kernel().unpack(self.weight.data, state.absmax, state.code)
        else:
            weight = unpack(self.weight.data, state)
        return functional.linear(x, weight.to(x.dtype), self.bias)


def unpack(codes: Tensor, state: QuantState) -> Tensor:
    """A matrix in bitsandbytes' usual order, unpacked as one row, so that blocks may run over the ends of rows."""
    flat = copy.copy(state)
    flat.shape = torch.Size((1, state.shape.numel()))
    return dequantize_4bit(codes.view(-1, 1), flat).view(state.shape)  # type: ignore[no-any-return]


def install(module: nn.Module) -> None:
    """Make a loaded model's 4-bit layers on the CPU :class:`CpuNf4Linear`."""
    parts: Iterable[Any] = module.modules()
    for layer in parts:
        if type(layer) is Linear4bit and layer.weight.device.type == "cpu":
            layer.__class__ = CpuNf4Linear
            whole = layer.out_features % 32 == 0 and layer.in_features % 64 == 0
            fast = has_avx512bf16() and layer.compute_dtype == torch.bfloat16 and _kernel() is not None
            layer.support_avx512bf16_for_cpu = whole and fast


def _kernel() -> Any:
    return for_cpu("linear", "nf4")
