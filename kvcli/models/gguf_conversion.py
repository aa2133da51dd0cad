"""Conversion of a GGUF file into a model's directory, in a process of its own.

kvcli reads the architectures of :mod:`kvcli.models.gguf_config` itself, tensor by tensor. transformers converts others
that it knows, with the whole model in memory.
"""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

from kvcli.errors import ModelError
from kvcli.models import gguf_config, gguf_rope
from kvcli.models.gguf import EXIT_DISK, EXIT_UNKNOWN
from kvcli.models.gguf_header import GgufHeader, read_header
from kvcli.models.weights import require_all

# Byte-level BPE whose digits stand alone (llama.cpp: "\p{N}", then the GPT-2 rule). transformers 5.23 splits
# these as GPT-2 does, which reads "\n\n7" as three tokens where the model was trained on two.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_GPT2 = {"default", "gpt-2", "gpt2", "phi-2", "olmo", "dolma"}


def main() -> int:
    """The child process, given a GGUF file and a folder: everything heavy, nothing on a screen."""
    source, target = map(Path, sys.argv[1:])
    try:
        header = read_header(source)
        settings = gguf_config.config(header)
        if settings is None:
            _with_transformers(source, target, header)
        else:
            _by_tensor(settings, source, target, header)
        notes = _save_tokenizer(header.files[0], target, header)
        (target / "notes.json").write_text(json.dumps(notes))
    except (ModelError, ValueError, NotImplementedError) as error:
        print(f"{error}".splitlines()[0] if str(error) else repr(error), file=sys.stderr)
        return EXIT_UNKNOWN
    except OSError as error:
        print(error, file=sys.stderr)
        return EXIT_DISK if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return 0


def _by_tensor(settings: dict[str, Any], source: Path, target: Path, header: GgufHeader) -> None:
    import torch
    import transformers

    from kvcli.models import gguf_tensors, partial_imports
    from kvcli.models.auto_class import auto_class

    config = transformers.AutoConfig.for_model(**settings)
    partial_imports.complete()
    with torch.device("meta"):
        module = auto_class(config).from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    module.tie_weights()
    for done, total in gguf_tensors.write(module, header, source.name, target / "model.safetensors"):
        print(f"{done} {total}", flush=True)
    config.architectures, config.dtype = [type(module).__name__], "bfloat16"
    config.save_pretrained(target)
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    transformers.GenerationConfig(**ends).save_pretrained(target)


def _save_tokenizer(source: Path, target: Path, header: GgufHeader) -> list[str]:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(gguf_file=source.name, name_or_path=str(source.parent), local_files_only=True)
    notes = _restore_splitting(tokenizer, header)
    window = header.count("context_length")
    if window:
        tokenizer.model_max_length = window
    tokenizer.save_pretrained(target)
    return notes


def _with_transformers(source: Path, target: Path, header: GgufHeader) -> None:
    """An architecture that transformers converts itself."""
    if len(header.files) > 1:
        raise ModelError(
            f"{header.architecture} is read from one file only: join the parts with llama-gguf-split --merge"
        )
    _report_progress()
    import torch
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # a transformers that has it keeps the weights packed otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        local_files_only=True,
        **options,
        dtype=torch.bfloat16,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused here, with their names
    )
    require_all(found, source.name)
    _restore_rope(model.config, header, source)
    model.save_pretrained(target)


def _restore_rope(config: Any, header: GgufHeader, source: Path) -> None:
    """Give a config the rotary embedding that the file describes; raises :class:`ModelError` if it cannot be."""
    names = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
    factors: dict[str, list[float]] = {}
    if any(name in header.shapes for name in names):
        from gguf import GGUFReader, dequantize

        for tensor in GGUFReader(source).tensors:
            if tensor.name in names:
                factors[tensor.name] = [float(f) for f in dequantize(tensor.data, tensor.tensor_type).ravel()]
    scaled = any(key.startswith(f"{header.architecture}.rope.scal") for key in header.metadata)
    ours = getattr(config, "rope_parameters", None)
    if not isinstance(ours, dict) or "rope_theta" not in ours:
        if factors or scaled:
            raise ModelError(f"its RoPE is scaled, which transformers does not know of {header.architecture}")
        return
    window = header.count("context_length") or config.max_position_embeddings
    found = gguf_rope.parameters(
        header.metadata,
        header.architecture,
        theta=float(ours["rope_theta"]),
        window=window,
        **{key: factors.get(name) for key, name in zip(("factors", "short", "long"), names, strict=True)},
    )
    if found["rope_type"] == "longrope" and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = found["original_max_position_embeddings"]
    config.rope_parameters = {**ours, **found} if found["rope_type"] != "default" else ours
    _check_rotated(config, header)


def _check_rotated(config: Any, header: GgufHeader) -> None:
    """How many numbers of a head are rotated: transformers drops that for most architectures."""
    rotated = header.count("rope.dimension_count")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not rotated or rotated == round(head * config.rope_parameters.get("partial_rotary_factor", 1.0)):
        return
    if "partial_rotary_factor" not in config.rope_parameters and not hasattr(config, "partial_rotary_factor"):
        raise ModelError(f"it rotates {rotated} of {head} numbers of a head, which its architecture does not here")
    config.rope_parameters["partial_rotary_factor"] = rotated / head


def _restore_splitting(tokenizer: Any, header: GgufHeader) -> list[str]:
    """Split text before BPE as the model's own tokenizer did, where transformers drops the GGUF's rule."""
    rule = header.metadata.get("tokenizer.ggml.pre")
    if header.metadata.get("tokenizer.ggml.model") != "gpt2" or rule is None or rule in _AS_GPT2:
        return []
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        return []  # transformers knew the rule
    if rule in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return []
    return [f"the file's rule for splitting text ({rule}) is not known here; text is split as GPT-2 does"]


def _report_progress() -> None:
    """Make every tqdm bar of this process write ``done total`` lines instead of drawing."""
    import tqdm  # type: ignore[import-untyped]
    import tqdm.auto  # type: ignore[import-untyped]

    class Lines(tqdm.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options["file"] = Path(os.devnull).open("w")  # noqa: SIM115 - lives as long as the bar
            super().__init__(*args, **options)
            self.ours = "GGUF" in str(options.get("desc"))

        def update(self, n: float | None = 1) -> bool | None:
            if self.ours and self.total:
                print(f"{int(self.n)} {int(self.total)}", flush=True)
            drawn: bool | None = super().update(n)
            return drawn

    tqdm.tqdm = tqdm.auto.tqdm = Lines
