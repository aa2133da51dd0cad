"""Weights in fewer bits: matrices quantised while loading (bitsandbytes), and checkpoints that come quantised.

bitsandbytes multiplies both on CUDA and, in the release 0.50 that the tests run with, on the CPU. Of the others,
gptqmodel multiplies AWQ and GPTQ as they are, on the CPU too; FP8 stays so on a GPU; compressed-tensors is unpacked.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from typing import Any

import torch
from torch import nn

from kvcli.errors import ModelError, UsageError
from kvcli.models import spec as model_spec
from kvcli.models.weights import ModelSource

NEEDS = {
    "awq": ("gptqmodel",),
    "gptq": ("gptqmodel", "optimum"),
    "compressed-tensors": ("compressed-tensors",),
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "torchao": ("torchao",),
    "eetq": ("kernels",),
}
"""Method of a quantised checkpoint to the packages that read it. FP8 needs ``kernels``, and that on a GPU only."""


def options(source: ModelSource, held: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for ``--weights int8`` and ``nf4``.

    Raises:
        UsageError: the checkpoint is quantised already.
        ModelError: bitsandbytes is not there.
    """
    own = source.quantized
    if own is not None:
        raise UsageError(
            f"{source.name} is quantised already ({own}): --weights {held} cannot be", "leave out --weights"
        )
    _bitsandbytes(held)
    from transformers import BitsAndBytesConfig

    latents = model_spec.text_config(source.config).get("kv_lora_rank")
    skipped = ["lm_head", model_spec.UNPACKING] if latents else None  # by default all but the head are quantised
    four: Any = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    bits = {"load_in_8bit": True} if held == "int8" else four
    return {"quantization_config": BitsAndBytesConfig(llm_int8_skip_modules=skipped, **bits)}


def reading(source: ModelSource, device: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a checkpoint that comes quantised.

    transformers unpacks compressed-tensors at the first forward pass, when the plan has long been made; so it is told
    to do it while loading.

    Raises:
        ModelError: a package is missing; names it and the command.
    """
    own = source.quantized
    if missing := _missing(own, device):
        raise ModelError(
            f"{source.name} is quantised with {own}, which needs {' and '.join(missing)}, and that is not installed",
            _install(missing),
        )
    if own == "mxfp4":  # experts stay packed (kvcli.models.packed_experts), without a kernel
        from transformers import Mxfp4Config

        return {"quantization_config": Mxfp4Config(dequantize=True)}
    if own != "compressed-tensors":
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def load_notice(source: ModelSource, device: str, dtype: str) -> str | None:
    """One line for the user before a quantised checkpoint is loaded."""
    own = source.quantized
    if model_spec.unpacked(own, device):
        return f"{source.name} comes quantised ({own}) and is unpacked to {dtype}"
    if "gptqmodel" in NEEDS.get(own or "", ()):
        return f"{source.name} comes quantised ({own}); gptqmodel may build its kernel first, once, in some minutes"
    return None


@contextmanager
def suppress_output() -> Iterator[None]:
    """Lets the packages that read quantised checkpoints say nothing.

    They have banners, logs and progress bars, some of it on standard output, which is the answer's.
    """
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def prepare(source: ModelSource) -> None:
    """Import a large package that reads a quantised checkpoint, so that its memory is not counted as the model's."""
    if "gptqmodel" in NEEDS.get(source.quantized or "", ()):
        with suppress_output():
            importlib.import_module("gptqmodel")


def cast_leftovers(module: nn.Module, dtype: torch.dtype) -> None:
    """Give all of a model that was unpacked one dtype: transformers leaves tensors that were not packed in theirs."""
    if getattr(getattr(module, "config", None), "quantization_config", None) is None:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def _missing(own: str | None, device: str) -> list[str]:
    needed = ("kernels",) if own == "fp8" and device != "cpu" else NEEDS.get(own or "", ())
    return [name for name in needed if not _installed(name)]


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _install(packages: Sequence[str]) -> str:
    """The newest gptqmodel wants a newer torch than kvcli was tried with, and would bring it."""
    return f'pip install {" ".join(packages)} "torch=={torch.__version__.split("+")[0]}"'


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


def fit_layers(module: nn.Module, held: str) -> None:
    """Work around bitsandbytes 0.50: 4-bit layers on a CPU, and int8 matrices, which fail at large numbers if they get
    more than three dimensions."""
    if "bitsandbytes" in sys.modules:
        from kvcli.models import nf4_linear

        nf4_linear.install(module)

    def forward(given: torch.Tensor, inner: Any) -> torch.Tensor:
        if given.dim() <= 3:
            return inner(given)  # type: ignore[no-any-return]
        return inner(given.flatten(0, -2)).unflatten(0, given.shape[:-1])  # type: ignore[no-any-return]

    for part in module.modules() if held == "int8" else ():
        if isinstance(part, _bitsandbytes(held).nn.Linear8bitLt):
            part.forward = partial(forward, inner=part.forward)


def unreadable(source: ModelSource, error: BaseException) -> ModelError | None:
    """The error for a quantised checkpoint that could not be loaded; ``None`` if it is not quantised."""
    own = source.quantized
    if own is None:
        return None
    reason = " ".join(str(error).split())[:300]
    gpu = re.search(r"\b(GPU|CUDA|XPU)\b", reason) and not torch.cuda.is_available()
    hint = "a machine with a CUDA GPU, or an unquantised copy" if gpu else f"kvcli models show {source.name}"
    return ModelError(f"{source.name} is quantised with {own} and cannot be loaded: {reason}", hint)
