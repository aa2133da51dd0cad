"""Checkpoints that come quantised, packed by hand as each format lays its numbers down, and what those numbers mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvcli.models.weights import ModelSource

GROUP = 32
"""Inputs of a matrix that share a scale; an edge of FP8's square blocks, too."""

_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which output lies in which four bits of an int32, from the lowest on

Parts = dict[str, Tensor]


def _codes(weight: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes ``[out, in]``, scale and zero point ``[out, in / GROUP]``, and the numbers meant ``[out, in]``."""
    grouped, top = weight.float().unflatten(1, (-1, GROUP)), 2**bits - 1
    if symmetric:
        scale = grouped.abs().amax(-1) / (top // 2)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale = (high - low) / top
        zero = (-low / scale).round().clamp(1, top)
    scale = scale.half().float()
    codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, top)
    meant = (codes - zero[..., None]) * scale[..., None]
    return codes.flatten(1).int(), scale, zero.int(), meant.flatten(1)


def _words(numbers: Tensor, bits: int, order: list[int] | None = None) -> Tensor:
    """int32 ``[n, m · bits / 32]`` of numbers ``[n, m]``, the lowest bits first."""
    parts = numbers.long().unflatten(1, (-1, 32 // bits))
    if order is not None:
        parts = parts[..., order]
    shifts = torch.arange(0, 32, bits)
    whole = (parts << shifts).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int().contiguous()


def gptq(weight: Tensor) -> tuple[Parts, Tensor]:
    """Packed along the inputs, zero points one too small."""
    codes, scale, zero, meant = _codes(weight, 4, symmetric=True)
    return {
        "qweight": _words(codes, 4).T.contiguous(),
        "qzeros": _words(zero.T - 1, 4),
        "scales": scale.T.half().contiguous(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }, meant


def awq(weight: Tensor) -> tuple[Parts, Tensor]:
    """Packed along the outputs, in AWQ's own order."""
    codes, scale, zero, meant = _codes(weight, 4, symmetric=False)
    return {
        "qweight": _words(codes.T, 4, _AWQ_ORDER),
        "qzeros": _words(zero.T, 4, _AWQ_ORDER),
        "scales": scale.T.half().contiguous(),
    }, meant


def fp8(weight: Tensor) -> tuple[Parts, Tensor]:
    """Blocks of ``GROUP`` by ``GROUP`` with one scale."""
    blocks = weight.float().unflatten(0, (-1, GROUP)).unflatten(2, (-1, GROUP))  # [rows, GROUP, columns, GROUP]
    scale = blocks.abs().amax((1, 3)) / 448
    small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = (small.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    return {"weight": small.flatten(2).flatten(0, 1), "weight_scale_inv": scale}, meant


def compressed_int4(weight: Tensor) -> tuple[Parts, Tensor]:
    """compressed-tensors' ``pack-quantized``."""
    codes, scale, _, meant = _codes(weight, 4, symmetric=True)
    return {
        "weight_packed": _words(codes, 4),
        "weight_scale": scale.half(),
        "weight_shape": torch.tensor(weight.shape),
    }, meant


def compressed_int8(weight: Tensor) -> tuple[Parts, Tensor]:
    """compressed-tensors' ``int-quantized``, one scale a row."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    codes = (weight.float() / scale).round()
    return {"weight": codes.to(torch.int8), "weight_scale": scale}, codes * scale


def compressed_fp8(weight: Tensor) -> tuple[Parts, Tensor]:
    """compressed-tensors' ``float-quantized``, one scale a row."""
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    small = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": small, "weight_scale": scale}, small.float() * scale


def _compressed(form: str, bits: int, kind: str, strategy: str, group: int | None) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": group}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], tuple[Parts, Tensor]]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}, gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, awq),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [GROUP, GROUP], "activation_scheme": "dynamic"}, fp8),
    "compressed int4": (_compressed("pack-quantized", 4, "int", "group", GROUP), compressed_int4),
    "compressed int8": (_compressed("int-quantized", 8, "int", "channel", None), compressed_int8),
    "compressed fp8": (_compressed("float-quantized", 8, "float", "channel", None), compressed_fp8),
}
"""Name to the config that a checkpoint has and what makes a matrix of a layer ``[out, in]`` into its tensors."""


def pack(source: ModelSource, name: str, folder: Path) -> tuple[ModelSource, ModelSource]:
    """A model's matrices packed in a format, and a plain checkpoint of the numbers that this means."""
    config, packed = FORMATS[name]
    tensors, plain = Parts(), Parts()
    for key, value in load_file(source.path / "model.safetensors").items():
        if "layers." not in key or value.dim() != 2:
            tensors[key] = plain[key] = value
            continue
        parts, plain[key] = packed(value)
        tensors |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    return (
        _save(source, folder / "packed", tensors, {"quantization_config": config}),
        _save(source, folder / "plain", plain, {}),
    )


def _save(source: ModelSource, folder: Path, tensors: Parts, config: dict[str, Any]) -> ModelSource:
    folder.mkdir()
    for file in source.path.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    whole = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(whole))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return ModelSource(folder.name, folder, "directory")
