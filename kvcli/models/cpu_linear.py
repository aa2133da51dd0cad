"""Linear layers with a fast product for few rows, which decoding on a CPU spends its time in.

A float32 model whose file has bfloat16 weights reads them from the mapped file while it decodes: the same numbers in
half the bytes, without memory of their own. Many rows, in prefill, take the float32 weights and torch's product.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kvcli.models import weights
from kvcli_kernels.linear import linear, serves

_SAMPLE = 64  # rows of a matrix that are compared with the file's


class CpuDecodeLinear(nn.Linear):
    """torch's linear layer with kvcli's kernels; ``stored`` is the weight as the file has it, if that is narrower."""

    stored: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        stored = self.stored
        weight = self.weight if stored is None or not serves(input, stored) else stored
        return linear(input, weight, self.bias)


def install(module: nn.Module) -> Callable[[bool], None]:
    """Find a model's plain bfloat16 and float32 layers on the CPU.

    Layers of other classes (quantised ones) and those that accelerate copies to the GPU stay as they are.

    Returns:
        a switch: ``switch(True)`` makes them :class:`CpuDecodeLinear`, ``switch(False)`` plain again.
    """
    layers = [m for m in module.modules() if type(m) is nn.Linear and not hasattr(m, "_hf_hook")]
    layers = [m for m in layers if m.weight.dtype != torch.float16 and m.weight.device.type == "cpu"]

    def switch(on: bool) -> None:
        for layer in layers:
            layer.__class__ = CpuDecodeLinear if on else nn.Linear

    return switch


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
