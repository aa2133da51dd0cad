"""The tensors of a GGUF file under the names and in the layout of a transformers model, one after the other.

Names come from the package gguf, which knows what llama.cpp calls each tensor. This module undoes what llama.cpp's
converter also changes (only its code documents it, conversion/*.py). The converter stores rows of queries and keys in
pairs, norms that are one larger, and ``-exp(A_log)``. It splits or joins experts and projections, and reorders value
heads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from kvcli.models.gguf_header import GgufHeader
from kvcli.models.weights import require_all

_ROWS_AT_ONCE = 16 << 20
"""Numbers that are dequantised at a time: 64 MB in float32."""

_PAIRED = {"llama", "mistral3", "smollm3", "granite", "granitemoe", "granitehybrid", "nemotron_h", "nemotron_h_moe"}
"""Architectures whose rows of queries and keys rotate in pairs (2i, 2i+1)."""

_NORMS_PLUS_ONE = {"qwen35", "qwen35moe", "qwen3next", "gemma", "gemma2", "gemma3", "nemotron"}

_SPARE = re.compile(r"^(rope_freqs|rope_factors_(long|short))\.weight$")

_FLOAT32 = re.compile(r"(A_log|dt_bias|correction_bias|expert_bias)$")
"""Tensors that are not rounded to bfloat16."""

_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|down_proj|up_proj)(_bias)?$")

Shapes = Mapping[str, tuple[int, ...]]


class TensorReader:
    """Dequantises the tensors of a GGUF model."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._files = {file: np.memmap(file, np.uint8, "c") for file in header.files}

    def __contains__(self, name: str) -> bool:
        return name in self._header.shapes

    def read(self, name: str, *, exact: bool = False) -> Tensor:
        """One tensor in the order of torch's dimensions, in bfloat16 or (``exact``) float32."""
        dimensions, kind, begin, file = self._header.shapes[name]
        shape, known = tuple(reversed(dimensions)), gguf.GGMLQuantizationType(kind)
        block, width = gguf.GGML_QUANT_SIZES[known]
        columns = shape[-1] // block * width
        rows = math.prod(shape[:-1])
        raw = self._files[file][begin : begin + rows * columns].reshape(rows, columns)
        small = exact or len(shape) < 2
        out = torch.empty(rows, shape[-1], dtype=torch.float32 if small else torch.bfloat16)
        step = max(1, _ROWS_AT_ONCE // shape[-1])
        for at in range(0, rows, step):
            part = raw[at : at + step]
            if known in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
                part = part.view(np.float32 if known == gguf.GGMLQuantizationType.F32 else np.float16)
            values = gguf.dequantize(part, known)
            out[at : at + step] = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        return out.reshape(shape)


@dataclass(frozen=True)
class _Made:
    """How one tensor of the model is made of tensors of the file."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor]
    exact: bool = False


def write(module: nn.Module, header: GgufHeader, name: str, target: Path) -> Iterator[tuple[int, int]]:
    """Write a model's tensors as bfloat16 safetensors, one at a time. Yields how many of the file's are done, of all.

    Args:
        module: the model on the meta device.
        header: of the file.
        name: of the file, for messages.
        target: the safetensors file.

    Raises:
        ModelError: tensors are missing, of another shape, or not the model's.
    """
    reader, wanted = TensorReader(header), _distinct(module)
    made = _plan(module, reader, header, wanted)
    config: Any = module.config
    layers = config.get_text_config().num_hidden_layers
    used = {source for each in made.values() for source in each.sources}
    unused = [n for n in header.shapes if n not in used and not _SPARE.match(n) and not _beyond(n, layers)]
    report: dict[str, Any] = {"missing_keys": sorted(set(wanted) - set(made)), "unexpected_keys": unused}
    require_all({**report, "mismatched_keys": _mismatched(made, header, wanted)}, name)
    dtypes = {n: torch.float32 if _FLOAT32.search(n) else torch.bfloat16 for n in wanted}
    done, total = 0, header.tensors
    with target.open("wb") as file:
        file.write(_head(wanted, dtypes))
        for n, shape in wanted.items():
            each = made[n]
            values = each.make(*(reader.read(s, exact=each.exact) for s in each.sources))
            values = values.to(dtypes[n]).reshape(shape).contiguous()
            file.write(values.view(torch.uint8).flatten().numpy().data)
            done += len(each.sources)
            yield min(done, total), total


def _head(wanted: Shapes, dtypes: Mapping[str, torch.dtype]) -> bytes:
    """The header of a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in wanted.items():
        size = math.prod(shape) * dtypes[name].itemsize
        kind = "F32" if dtypes[name] == torch.float32 else "BF16"
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _distinct(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by name; of tensors that are tied, the first only."""
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tuple(tensor.shape)))
    return dict(found.values())


def _beyond(name: str, layers: int) -> bool:
    """Whether a tensor belongs to a block after the last layer, which predicts several tokens at once."""
    block = re.match(r"blk\.(\d+)\.", name)
    return block is not None and int(block[1]) >= layers


def _mismatched(made: Mapping[str, _Made], header: GgufHeader, wanted: Shapes) -> list[tuple[str, Any, Any]]:
    wrong = []
    for name, each in made.items():
        numbers = sum(math.prod(header.shapes[s].shape) for s in each.sources)
        if numbers != math.prod(wanted[name]):
            theirs = tuple(reversed(header.shapes[each.sources[0]].shape))
            wrong.append((name, theirs, wanted[name]))
    return wrong


def _plan(module: nn.Module, reader: TensorReader, header: GgufHeader, wanted: Shapes) -> dict[str, _Made]:
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    whole: Any = module.config
    config = whole.get_text_config()
    architecture = header.architecture
    names = gguf.get_tensor_name_map(known[architecture], config.num_hidden_layers)
    made = {}
    for name, shape in wanted.items():
        found = _special(name, reader, config, architecture) or _by_name(name, reader, names)
        if found is not None:
            made[name] = _undone(name, shape, found, config, architecture)
    return made


def _by_name(name: str, reader: TensorReader, names: gguf.TensorNameMap) -> _Made | None:
    for alias in _aliases(name):
        if (found := names.get_name(alias, try_suffixes=(".weight", ".bias"))) is not None:
            for full in (found, f"{found}.weight"):
                if full in reader:
                    return _Made((full,), _same)
    return None


def _aliases(name: str) -> list[str]:
    """Names under which gguf may know a tensor: original checkpoints call some of them otherwise."""
    other = name.replace(".dt_bias", ".dt_proj.bias").replace("_correction_bias", "_correction.bias")
    other = other.replace(".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight")
    other = other.replace(".expert_bias", ".expert_bias.bias").replace(".layer_scalar", ".layer_scalar.weight")
    original = re.sub(r"^model\.(layers\.\d+\.(mixer|norm)\.)", r"backbone.\1", other)
    original = original.replace(".mixer.dt_proj.bias", ".mixer.dt.bias")
    return list(dict.fromkeys((other, original, name, f"{name}.weight")))


def _special(name: str, reader: TensorReader, config: Any, architecture: str) -> _Made | None:
    """Tensors that the file has in several parts, or joined with others."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    block = f"blk.{found[1]}." if found else ""

    def of(make: Callable[..., Tensor], *ends: str) -> _Made | None:
        """Made of tensors of this block, if the file has them all."""
        full = tuple(block + end for end in ends)
        return _Made(full, make) if all(n in reader for n in full) else None

    if (experts := _EXPERTS.search(name)) is not None:
        return _experts(experts[1], bool(experts[2]), of, architecture)
    if name.endswith(".shared_mlp.input_linear.weight"):
        both = ("ffn_gate{}.weight", "ffn_up{}.weight")
        return next(filter(None, (of(_joined, *(n.format(end) for n in both)) for end in ("_shexp", ""))), None)
    if name.endswith(".shared_mlp.output_linear.weight"):
        return of(_same, "ffn_down_shexp.weight") or of(_same, "ffn_down.weight")
    if name.endswith(".kv_b_proj.weight"):
        return of(lambda k, v: torch.cat([k.transpose(1, 2), v], dim=1), "attn_k_b.weight", "attn_v_b.weight")
    if name.endswith(".in_proj_qkvz.weight"):
        return of(lambda qkv, z: _by_key_head(qkv, z, config), "attn_qkv.weight", "attn_gate.weight")
    if name.endswith(".router.scale"):
        return of(_same, "ffn_gate_inp.scale")
    if name.endswith(".router.per_expert_scale"):
        return of(_same, "ffn_down_exps.scale")
    if name == "model.embedding_norm.weight":
        return next((_Made((n,), _same) for n in ("output_norm.weight", "token_embd_norm.weight") if n in reader), None)
    return None


def _experts(kind: str, bias: bool, of: Callable[..., _Made | None], architecture: str) -> _Made | None:
    end, other = ".bias" if bias else ".weight", architecture == "gpt-oss"
    if kind != "gate_up_proj":
        turn = other and not bias
        return of(lambda t: t.mT if turn else t, f"ffn_{kind.removesuffix('_proj')}_exps{end}")
    make = _joined if not other else _interleaved if bias else lambda gate, up: _interleaved(gate.mT, up.mT)
    return of(_same, f"ffn_gate_up_exps{end}") or of(make, f"ffn_gate_exps{end}", f"ffn_up_exps{end}")


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _joined(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of gate, then rows of up; experts stay apart."""
    return torch.cat([gate, up], dim=-2)


def _interleaved(gate: Tensor, up: Tensor) -> Tensor:
    """Columns of gate and up in turn."""
    return torch.stack([gate, up], dim=-1).flatten(-2)


def _by_key_head(qkv: Tensor, z: Tensor, config: Any) -> Tensor:
    """Queries, keys, values and gates of one key head after the other."""
    keys, dim = config.linear_num_key_heads, config.linear_key_head_dim
    q, k, v = torch.split(qkv, [keys * dim, keys * dim, len(z)])
    return torch.cat([t.reshape(keys, -1, t.shape[-1]) for t in (q, k, v, z)], dim=1).flatten(0, 1)


def _undone(name: str, shape: tuple[int, ...], found: _Made, config: Any, architecture: str) -> _Made:
    """Undo what llama.cpp's converter changed in the values of a tensor."""
    make = found.make

    def then(change: Callable[[Tensor], Tensor], *, exact: bool = False) -> _Made:
        return _Made(found.sources, lambda *given: change(make(*given)), exact)

    if architecture in _PAIRED and (which := re.search(r"\.(q|k)_proj\.(weight|bias)$", name)):
        heads = config.num_attention_heads if which[1] == "q" else config.num_key_value_heads
        return then(lambda t: t.reshape(heads, len(t) // heads // 2, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape))
    if name.endswith("A_log"):
        return _tiled(name, then(lambda t: torch.log(-t).reshape(shape), exact=True), config, architecture)
    if architecture in _NORMS_PLUS_ONE and name.endswith("norm.weight") and ".linear_attn." not in name:
        return then(lambda t: t - 1, exact=True)
    return _tiled(name, found, config, architecture)


def _tiled(name: str, found: _Made, config: Any, architecture: str) -> _Made:
    """Put value heads of Qwen 3.5 back in the order of their key heads."""
    if architecture not in ("qwen35", "qwen35moe") or ".linear_attn." not in name or name.endswith(".norm.weight"):
        return found
    keys, values, dim = config.linear_num_key_heads, config.linear_num_value_heads, config.linear_value_head_dim
    numbers = torch.arange(values).reshape(values // keys, keys).T.flatten()  # of a head in the file, in our order
    wide = (numbers[:, None] * dim + torch.arange(dim)).flatten()

    def change(tensor: Tensor) -> Tensor:
        if name.endswith("out_proj.weight"):
            return tensor[:, wide]
        index = numbers if len(tensor) == values else wide
        return torch.cat([tensor[: len(tensor) - len(index)], tensor[len(tensor) - len(index) :][index]])

    return _Made(found.sources, lambda *given: change(found.make(*given)), found.exact)


def numbers_of(header: GgufHeader, name: str) -> list[float]:
    """The numbers of a tensor; none if the file does not have it."""
    if name not in header.shapes:
        return []
    found: list[float] = TensorReader(header).read(name).tolist()
    return found
