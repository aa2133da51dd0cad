"""Linear layers with a fast product for few rows, which decoding on a CPU spends its time in.

While it decodes, a model reads narrower weights than it has, mapped from a file:

- a float32 model whose file has bfloat16 weights reads those: the same numbers in half the bytes;
- a model that was made from a quantised file (GGUF) reads 4 or 8 bits a weight: 4 if the file had 4 in steps of one
  size, else 8. This changes a weight by less than rounding to 4 bits did. What is multiplied is rounded to 8 bits, so
  answers may differ in words.

Many rows, in prefill, take the model's own weights and torch's product.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kvcli.models import weights
from kvcli.models.weights import PACKED
from kvcli.utils import files
from kvcli_kernels.linear import FEW_PACKED, linear, packed, serves

_FORMER = "decode-int8.safetensors"  # an older kvcli's

_SAMPLE = 64  # rows of a matrix that are compared with the file's


class CpuDecodeLinear(nn.Linear):
    """torch's linear layer with kvcli's kernels.

    Attributes:
        stored: the weight as the file has it, if that is narrower.
        packed: the weight with 4 or 8 bits (:class:`kvcli_kernels.linear.packed.PackedWeight`), if decoding takes that.
    """

    stored: Tensor | None = None
    packed: Any = None

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is not None and input.numel() <= FEW_PACKED * input.shape[-1] and not torch.is_grad_enabled():
            return self.packed.linear(input, self.bias)  # type: ignore[no-any-return]
        stored = self.stored
        weight = self.weight if stored is None or not serves(input, stored) else stored
        return linear(input, weight, self.bias)


def install(module: nn.Module, spare: AbstractSet[nn.Module] = frozenset()) -> Callable[[bool], None]:
    """Find a model's plain bfloat16 and float32 layers on the CPU.

    Layers of other classes (quantised ones) and those that accelerate copies to the GPU stay as they are, and so do
    ``spare`` ones.

    Returns:
        a switch: ``switch(True)`` makes them :class:`CpuDecodeLinear`, ``switch(False)`` plain again.
    """
    layers = [m for m in module.modules() if type(m) is nn.Linear and not hasattr(m, "_hf_hook")]
    layers = [m for m in layers if m not in spare]
    layers = [m for m in layers if m.weight.dtype != torch.float16 and m.weight.device.type == "cpu"]

    def switch(on: bool) -> None:
        for layer in layers:
            layer.__class__ = CpuDecodeLinear if on else nn.Linear

    return switch


def map_packed(module: nn.Module, directory: Path) -> int:
    """Give a model's layers weights of 4 or 8 bits, mapped from a file that is written the first time.

    Args:
        module: after :func:`install` and its switch.
        directory: of a converted model, where the file is.

    Returns:
        bytes of those weights; 0 if the kernel's compiler is not installed.
    """
    from safetensors import SafetensorError, safe_open

    layers = {n: m for n, m in module.named_modules() if type(m) is CpuDecodeLinear}
    if (kernels := packed()) is None or not layers:
        return 0
    path = directory / PACKED
    try:
        if not path.is_file():
            _write_packed(kernels, layers, path)
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for name, layer in layers.items():
                if name in names:
                    weight = kernels.PackedWeight(file.get_tensor(name), layer.out_features)
                    layer.packed = weight if weight.stands_for(layer.weight) else kernels.pack(layer.weight)
    except (OSError, SafetensorError):  # a folder that cannot be written, or a damaged file
        for layer in layers.values():
            layer.packed = kernels.pack(layer.weight)
    return sum(layer.packed.nbytes for layer in layers.values() if layer.packed is not None)


def spared_bytes(module: nn.Module) -> int:
    """Bytes of weights that a token does not read, because its layers read narrower ones."""
    layers = [m for m in module.modules() if type(m) is CpuDecodeLinear]
    narrow = [(m.weight.nbytes, m.stored if m.packed is None else m.packed) for m in layers]
    return sum(nbytes - taken.nbytes for nbytes, taken in narrow if taken is not None)


@contextmanager
def exact_weights(module: nn.Module) -> Iterator[None]:
    """Decode with the model's own weights in the block, not with fewer bits."""
    layers = [m for m in module.modules() if type(m) is CpuDecodeLinear and m.packed is not None]
    taken = [layer.packed for layer in layers]
    try:
        for layer in layers:
            layer.packed = None
        yield
    finally:
        for layer, weight in zip(layers, taken, strict=True):
            layer.packed = weight


def _write_packed(kernels: ModuleType, layers: dict[str, CpuDecodeLinear], path: Path) -> None:
    from safetensors.torch import save_file

    tensors = dict[str, Tensor]()
    for name, layer in layers.items():
        if (weight := kernels.pack(layer.weight)) is not None:
            tensors[name] = weight.blocks
    with files.atomic_write(path) as temporary:
        save_file(tensors, temporary)
    (path.parent / _FORMER).unlink(missing_ok=True)


def map_stored(module: nn.Module, directory: Path) -> int:
    """Give the float32 layers of a loaded model the bfloat16 weights of its files, mapped, if they are the same.

    Args:
        module: after :func:`install` and its switch.
        directory: of the model's safetensors.

    Returns:
        bytes of the weights that they have now.
    """
    from safetensors import safe_open

    layers = {n: m for n, m in module.named_modules() if type(m) is CpuDecodeLinear and m.weight.dtype == torch.float32}
    layers = {n: m for n, m in layers.items() if m.packed is None}
    shared = {id(parameter): name for name, parameter in module.named_parameters()}  # a tied head is the embedding
    names = {name: shared.get(id(layer.weight), "") for name, layer in layers.items()}
    found = dict[str, int]()
    for shard in weights.shards(directory) if layers else ():
        header = json.loads(weights.header(shard))
        here = {name: n for name, n in names.items() if header.get(n, {}).get("dtype") == "BF16"}
        if not here:
            continue
        with safe_open(shard, "pt") as file:
            for name, tensor in here.items():
                layer, stored = layers[name], file.get_tensor(tensor)
                if _same(stored, layer.weight):
                    layer.stored = stored
                    found[tensor] = stored.nbytes
    return sum(found.values())


def _same(stored: Tensor, weight: Tensor) -> bool:
    """Whether a matrix is the file's: transformers may merge, split or reorder what a file has."""
    step = max(1, len(weight) // _SAMPLE)
    return stored.shape == weight.shape and torch.equal(stored[::step].float(), weight[::step])
