"""Weights in fewer bits: matrices quantised while loading (bitsandbytes), and checkpoints that come quantised.

bitsandbytes multiplies both on CUDA and, in the release 0.50 that the tests run with, on the CPU.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

from kvcli.errors import ModelError, UsageError
from kvcli.hf.models import Source

NEEDS = {
    "awq": "gptqmodel",
    "gptq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "aqlm": "aqlm",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
    "eetq": "kernels",
}
"""Method of a quantised checkpoint to the package that reads it; fp8 needs a card and no package."""


def method(source: Source) -> str | None:
    """How the checkpoint itself is quantised, as its config says."""
    config = source.config
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else None


def options(source: Source, held: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for ``--weights``.

    Raises:
        UsageError: the checkpoint is quantised already.
        ModelError: bitsandbytes is not there.
    """
    own = method(source)
    if held == "bf16":
        return {}
    if own is not None:
        raise UsageError(
            f"{source.name} is quantised already ({own}): --weights {held} cannot be", "leave out --weights"
        )
    _bitsandbytes(held)
    from transformers import BitsAndBytesConfig

    if held == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four}


def _bitsandbytes(held: str) -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which kernels it has not, at every start
    warnings.filterwarnings("ignore", message="MatMul8bitLt")  # its activations are rounded to float16 first
    try:
        import bitsandbytes
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelError(f"--weights {held} needs bitsandbytes: {reason}", "pip install bitsandbytes") from None
    return bitsandbytes


def linear(plain: nn.Linear, held: str) -> nn.Module:
    """A matrix in memory, quantised as ``from_pretrained`` does it while loading."""
    parts = _bitsandbytes(held).nn
    weight, bias = plain.weight, plain.bias
    args = (plain.in_features, plain.out_features, bias is not None)
    if held == "int8":
        made = parts.Linear8bitLt(*args, has_fp16_weights=False, threshold=6.0, device="meta")
        made.weight = parts.Int8Params(weight.cpu(), has_fp16_weights=False, requires_grad=False).to(weight.device)
    else:
        made = parts.Linear4bit(*args, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        made.weight = parts.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=False)
        made.weight = made.weight.to(weight.device)
    made.bias = bias
    return made  # type: ignore[no-any-return]


def unreadable(source: Source, error: BaseException) -> ModelError | None:
    """What is missing for a quantised checkpoint that could not be loaded; ``None`` where it is not quantised."""
    own = method(source)
    if own is None:
        return None
    needs = NEEDS.get(own)
    reason = " ".join(str(error).split())[:300]
    hint = f"pip install {needs}" if needs else "--device cuda" if "fp8" in own else f"kvcli models show {source.name}"
    wants = f", which needs the package {needs}" if needs else ""
    return ModelError(f"{source.name} is quantised with {own}{wants}: {reason}", hint)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, and of scales that lie beside them."""
    total = 0
    for parameter in module.parameters():
        extra: Any = parameter
        state = getattr(extra, "quant_state", None)
        for scale in (getattr(extra, "SCB", None), getattr(state, "absmax", None)):
            total += scale.nbytes if isinstance(scale, torch.Tensor) else 0
        total += parameter.nbytes
    if getattr(getattr(module, "config", None), "quantization_config", None) is None:
        return total
    # A checkpoint that came quantised may have its integers and scales as buffers.
    return total + sum(b.nbytes for n, b in module.named_buffers() if not n.endswith("inv_freq"))
