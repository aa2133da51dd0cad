"""A model of a given shape with random weights: what time and memory cost without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from kvcli.errors import InputError, ModelError
from kvcli.models import packed_experts, partial_imports, quantization
from kvcli.models.auto_class import auto_class
from kvcli.models.load import placed, wrap
from kvcli.models.model import Model
from kvcli.models.spec import UNPACKING

_STD = 0.02  # of every matrix, as most families are initialised


class NullTokenizer:
    """Stands in for a tokenizer: every token is an empty text, and every text has no tokens."""

    add_bos_token = False
    chat_template = None

    def __init__(self) -> None:
        self._tokenizer = Tokenizer(tokenizer_models.BPE(vocab={}, merges=[]))

    def __call__(self, _text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": []}


def build(path: Path, *, device: str | None = None, dtype: str | None = None, weights: str = "bf16") -> Model:
    """A model with random weights.

    Args:
        path: a ``config.json``, under whatever name, or a directory with one.
        device, dtype, weights: as for :func:`kvcli.models.load.load`.

    Raises:
        InputError: there is no such file.
        ModelError: it does not describe a causal language model that transformers knows.
        UnsupportedModel: as for loading.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}", f"ls {path}") from None
    device, dtype = placed(device, dtype)
    module = _module(file, text, device, getattr(torch, dtype), weights)
    name = f"{file.parent.name if file.name == 'config.json' else file.stem} (random weights)"
    return wrap(module, NullTokenizer(), name=name, fingerprint=None)


def _module(file: Path, text: str, device: str, dtype: torch.dtype, held: str) -> PreTrainedModel:
    try:
        values: dict[str, Any] = json.loads(text, object_hook=_infinite)
        for name in ("auto_map", "quantization_config"):
            values.pop(name, None)
        config = AutoConfig.for_model(**values)
        partial_imports.complete()
        with torch.device("meta"):
            module = auto_class(config).from_config(
                config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{file} does not describe a causal language model: {str(error).strip().split(chr(10))[0][:200]}"
        raise ModelError(reason, "a model's config.json") from None
    generator = torch.Generator(device).manual_seed(0)
    for name, part in list(module.named_modules()):
        fill_weights(part, device, generator)
        few = isinstance(part, nn.Linear) and "layers." in name and not name.endswith(UNPACKING)
        if held != "bf16" and few:  # one at a time: the peak stays low
            module.set_submodule(name, quantization.linear(part, held))
        for last, _ in list(part.named_parameters(recurse=False)) if held != "bf16" else ():
            if packed_experts.packable(part, last):
                parts = packed_experts.PackedExperts(getattr(part, last), held, bool(part.is_transposed))
                packed_experts.pack(part, last, parts)
    for name, part in list(module.named_modules()):
        missing = {last: b for last, b in part.named_buffers(recurse=False) if b.device.type == "meta"}
        if missing and hasattr(part, "config"):
            with torch.device(device):  # frequencies are no parameters
                module.set_submodule(name, type(part)(config=part.config))
        elif missing:  # experts' biases
            part._buffers.update({last: torch.zeros_like(b, device=device) for last, b in missing.items()})
    module.tie_weights()
    quantization.fit_layers(module, held)
    return module.eval()


def _infinite(found: dict[str, Any]) -> Any:
    """Numbers that JSON does not have, as transformers writes them."""
    return float(found["__float__"]) if set(found) == {"__float__"} else found


def fill_weights(part: nn.Module, device: str, generator: torch.Generator) -> None:
    """Give a module's own parameters memory and values: matrices are drawn, norms are 1 and biases 0."""
    for name, parameter in part.named_parameters(recurse=False):
        if parameter.device.type != "meta":
            continue
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        if value.dim() > 1:
            value.normal_(std=_STD, generator=generator)
        else:
            value.fill_(0.0 if name == "bias" else 1.0)
        setattr(part, name, nn.Parameter(value, requires_grad=False))
