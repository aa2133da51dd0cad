"""Experts in few bits: bitsandbytes skips them, because a layer holds the matrices of all in one tensor.

They are packed while loading, one layer at a time. A CPU multiplies few tokens by them as they are. For more tokens,
and on other devices, one expert at a time is unpacked when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from kvcli_kernels.linear import FEW_EXPERT, experts

BLOCK = 64
"""Numbers of nf4 that share one float32 scale."""


@dataclass
class Matrix:
    """A packed matrix ``[N, K]`` that models multiply by; to every other function of torch it is the unpacked one.

    Attributes:
        unpack: makes the matrix.
        product: ``x [m, K]`` times the matrix transposed, without unpacking it.
        turned: the model has the transposed matrix ``[K, N]``, and writes ``x @ matrix``.
    """

    unpack: Callable[[], Tensor]
    product: Callable[[Tensor], Tensor]
    turned: bool = False

    def whole(self) -> Tensor:
        """The matrix as the model has it, unpacked."""
        return self.unpack().T if self.turned else self.unpack()

    @classmethod
    def __torch_function__(cls, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        x, matrix, *others = (*args, None)
        if isinstance(matrix, Matrix) and not kwargs and others in ([None], [None, None]):
            wanted = (Tensor.__matmul__, Tensor.matmul, torch.matmul) if matrix.turned else (functional.linear,)
            if function in wanted and x.numel() <= FEW_EXPERT * x.shape[-1]:
                return matrix.product(x)
        unpacked = tree_map(lambda part: part.whole() if isinstance(part, Matrix) else part, (args, kwargs or {}))
        return function(*unpacked[0], **unpacked[1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole(), name)


class PackedExperts(nn.Module):
    """One matrix per expert; ``self[i]`` is that of expert ``i``.

    Args:
        matrices: ``[experts, n, k]``.
        held: ``int8``, with a float32 scale for each row, or ``nf4``, with one for 64 numbers.
        turned: whether the model has them transposed (gpt-oss), and writes ``x @ matrix``.
    """

    def __init__(self, matrices: Tensor, held: str, turned: bool = False) -> None:
        super().__init__()
        self.shape, self.dtype, self.turned = matrices.shape, matrices.dtype, turned
        if held == "int8":
            scale = matrices.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            packed, self.code = (matrices / scale).round().to(torch.int8), None
        else:
            from bitsandbytes.functional import quantize_4bit

            packed, state = quantize_4bit(matrices.contiguous(), blocksize=BLOCK, quant_type="nf4")
            packed, scale = packed.view(len(matrices), -1), state.absmax.view(len(matrices), -1)
            self.code = state.code
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def __getitem__(self, expert: int | Tensor) -> Tensor | Matrix:
        packed, scale = self.packed[int(expert)], self.scale[int(expert)]
        if self.code is None:
            whole: Callable[[], Tensor] = lambda: (packed * scale).to(self.dtype)  # noqa: E731
            kernels: Any = experts() if packed.device.type == "cpu" else None
            if kernels is not None and self.turned:
                return Matrix(lambda: whole().T, lambda x: kernels.int8_turned(x, packed, scale), turned=True)
            return whole() if kernels is None else Matrix(whole, lambda x: kernels.int8(x, packed, scale))
        from bitsandbytes.functional import QuantState

        from kvcli.models.nf4_linear import unpack

        return unpack(packed, QuantState(scale, self.shape[1:], self.code.to(packed.device), BLOCK, "nf4", self.dtype))


class StoredExperts(nn.Module):
    """Expert matrices of a checkpoint in MXFP4, whose blocks and scales stay as they are.

    Args:
        blocks: uint8 ``[experts, n, k / 32, 16]``, two numbers each.
        scales: uint8 ``[experts, n, k / 32]``, exponents.
        dtype: of what is unpacked: ``[k, n]``, as gpt-oss has it.
    """

    def __init__(self, blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.packed = nn.Parameter(blocks, requires_grad=False)
        self.scale = nn.Parameter(scales, requires_grad=False)

    def __getitem__(self, expert: int | Tensor) -> Tensor | Matrix:
        blocks, scales = self.packed[int(expert)], self.scale[int(expert)]
        kernels: Any = experts() if blocks.device.type == "cpu" else None
        if kernels is not None:
            whole = lambda: kernels.unpack_mxfp4(blocks, scales, self.dtype)  # noqa: E731
            return Matrix(whole, lambda x: kernels.mxfp4(x, blocks, scales), turned=True)
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        one = slice(int(expert), int(expert) + 1)
        return convert_moe_packed_tensors(self.packed[one], self.scale[one], dtype=self.dtype)[0]  # type: ignore[no-any-return]


def packable(module: nn.Module, name: str) -> bool:
    """Whether a parameter has the matrices of all experts of a layer."""
    shape: tuple[int, ...] = getattr(getattr(module, name, None), "shape", ())
    return hasattr(module, "is_concatenated") and len(shape) == 3 and shape[1] * shape[2] % BLOCK == 0


def pack(module: nn.Module, name: str, parts: nn.Module) -> None:
    """Put packed matrices in the place of the others, which may be gone by now."""
    delattr(module, name)
    setattr(module, name, parts)
    config: Any = module.config
    config._experts_implementation = "eager"  # the one that takes matrices by their expert


@contextmanager
def packing(held: str, own: str | None = None) -> Iterator[None]:
    """Let ``from_pretrained`` pack experts too. Other threads must not load a quantised model meanwhile.

    Args:
        held: one of :data:`kvcli.types.WEIGHTS`.
        own: how the checkpoint is quantised itself.
    """
    name = {"int8": "bitsandbytes_8bit", "nf4": "bitsandbytes_4bit"}.get(held, own)
    usual: Any = AUTO_QUANTIZER_MAPPING[name]
    packed: dict[str, nn.Module] = {}

    class Pack(ConversionOps):  # type: ignore[misc]
        def __init__(self, linear: ConversionOps) -> None:
            self.linear = linear

        def convert(self, input_dict: dict[str, Any], *, model: nn.Module, **options: Any) -> dict[str, Any]:
            made: dict[str, Any] = {}
            for full, value in input_dict.items():
                path, _, last = full.rpartition(".")
                if not packable(model.get_submodule(path), last):
                    made |= self.linear.convert({full: value}, model=model, **options)
                    continue
                packed[full] = PackedExperts(_only(value), held, bool(model.get_submodule(path).is_transposed))
                made[full] = packed[full].packed
            return made

    class Keep(ConversionOps):  # type: ignore[misc]
        def __init__(self, _quantizer: Any) -> None:
            pass

        def convert(
            self, input_dict: dict[str, Any], *, model: nn.Module, full_layer_name: str, **_: Any
        ) -> dict[str, Any]:
            parts = {name.rpartition("_")[2]: _only(value) for name, value in input_dict.items()}
            dtype = model.get_parameter(full_layer_name).dtype
            packed[full_layer_name] = StoredExperts(parts["blocks"], parts["scales"], dtype)
            return {full_layer_name: packed[full_layer_name].packed}

    class Quantizer(usual):  # type: ignore[misc]
        def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
            path, _, last = param_name.rpartition(".")
            wanted = packable(model.get_submodule(path), last)
            return wanted or bool(super().param_needs_quantization(model, param_name, **options))

        def get_quantize_ops(self) -> ConversionOps:
            return Pack(super().get_quantize_ops())

        def get_load_operations(self) -> dict[str, Any]:
            return {**super().get_load_operations(), **({"dequantize": Keep} if name == "mxfp4" else {})}

        def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
            for full, parts in packed.items():
                path, _, last = full.rpartition(".")
                pack(model.get_submodule(path), last, parts)
            return super()._process_model_after_weight_loading(model, **options)

    AUTO_QUANTIZER_MAPPING[name] = Quantizer
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING[name] = usual


def _only(value: Any) -> Tensor:
    return value[0] if isinstance(value, list) else value  # type: ignore[no-any-return]
