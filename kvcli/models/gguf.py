"""A GGUF file, dequantised once and kept as bf16 safetensors.

transformers knows the tensor names, the permuted query and key rows and the tokenizers of many
architectures; kvcli does not repeat that. The conversion runs in a process of its own (:func:`main`), because
transformers draws bars and logs to the screen, needs the whole model in memory, and can be killed for it. Its
standard output is one ``done total`` pair a line.
"""

import errno
import json
import math
import os
import re
import shlex
import struct
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kvcli.errors import ModelError, ResourceError
from kvcli.events import Convert
from kvcli.models import gguf_rope, light_imports
from kvcli.models.tensor_check import require_all
from kvcli.utils import child_process, file_digest

# Fixed-size GGUF value types by their number; 8 is a string and 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
_SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# Byte-level BPE whose digits stand alone (llama.cpp: "\p{N}", then the GPT-2 rule). transformers 5.23 splits
# these as GPT-2 does, which reads "\n\n7" as three tokens where the model was trained on two.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_GPT2 = {"default", "gpt-2", "gpt2", "phi-2", "olmo", "dolma"}

_EXIT_DISK, _EXIT_UNKNOWN = 5, 4

_HEADER = 256 << 20
"""Bytes a header may take; the largest vocabularies need 20 MB."""

_STRING_BYTES, _DIMENSIONS = 64 << 20, 8


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file. Arrays (the vocabulary, head counts that differ by layer) are None.

    Attributes:
        metadata: by key.
        tensors, parameters: how many.
        shapes: by a tensor's name, its dimensions, its type's number and where its data begins in the file.
    """

    metadata: dict[str, Any]
    tensors: int
    parameters: int
    shapes: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)

    def count(self, key: str, default: int | None = None) -> int | None:
        """A number of the model's own architecture: ``count("block_count")`` reads ``llama.block_count``."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) else None

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def licence(self) -> str | None:
        value = self.metadata.get("general.license")
        return None if value is None else str(value)

    @property
    def bf16_bytes(self) -> int:
        """What the converted weights will take on disk."""
        return 2 * self.parameters


def read_header(path: Path) -> GgufHeader:
    """The metadata and the tensor table.

    Raises:
        ModelError: the file is not a whole GGUF, or one part of a model that was split.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except (struct.error, EOFError, UnicodeDecodeError, KeyError, MemoryError, OverflowError, RecursionError) as error:
        raise ModelError(f"damaged GGUF file: {path} (its header makes no sense: {error})") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def _read_header(file: IO[bytes], path: Path) -> GgufHeader:
    def take(size: int) -> bytes:
        if size > limit:  # a damaged length must not ask for terabytes
            raise EOFError(f"a length of {size:,} bytes in a file of {limit:,}")
        if size > _STRING_BYTES or file.tell() > _HEADER:
            raise EOFError(f"more than {_HEADER >> 20} MiB")
        data = file.read(size)
        if len(data) < size:
            raise EOFError(f"ends after {limit:,} bytes")
        return data

    def scalar(layout: str) -> Any:
        return struct.unpack(layout, take(struct.calcsize(layout)))[0]

    def string() -> str:
        return take(scalar("<Q")).decode("utf-8", "replace")

    def value(kind: int) -> Any:
        if kind == _STRING:
            return string()
        if kind != _ARRAY:
            return scalar(_SCALARS[kind])
        item, count = scalar("<I"), scalar("<Q")
        if item in _SCALARS:
            size = struct.calcsize(_SCALARS[item]) * count
            if size > limit - file.tell():
                raise EOFError(f"a list of {size:,} bytes in a file of {limit:,}")
            file.seek(size, os.SEEK_CUR)
        else:
            for _ in range(count):
                value(item)
        return None

    limit = path.stat().st_size
    first = file.read(4)
    if first == b"vers":
        raise ModelError(f"{path} is a Git LFS pointer: the text that names the file", "git lfs pull")
    if first != b"GGUF":
        raise ModelError(f"not a GGUF file: {path} (it does not begin with the letters GGUF)")
    version = scalar("<I")
    if version not in (2, 3):
        raise ModelError(f"{path} is GGUF version {version}; kvcli reads 2 and 3")
    tensors, entries = scalar("<Q"), scalar("<Q")
    metadata = {}
    for _ in range(entries):
        key = string()
        metadata[key] = value(scalar("<I"))
    _refuse_part(metadata, path)
    parameters, shapes = 0, {}
    for _ in range(tensors):
        name, dimensions = string(), scalar("<I")
        if dimensions > _DIMENSIONS:
            raise EOFError(f"a tensor of {dimensions:,} dimensions")
        shape = tuple(scalar("<Q") for _ in range(dimensions))
        kind, offset = scalar("<I"), scalar("<Q")
        parameters += math.prod(shape)
        shapes[name] = (shape, kind, offset)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise EOFError(f"an alignment of {alignment}")
    data = -(-file.tell() // alignment) * alignment
    shapes = {name: (shape, kind, data + offset) for name, (shape, kind, offset) in shapes.items()}
    last = max((begin for *_, begin in shapes.values()), default=0)
    if last >= limit:
        raise ModelError(f"damaged GGUF file: {path} ends at byte {limit:,}, its last tensor begins at {last:,}")
    return GgufHeader(metadata, tensors, parameters, shapes)


def _refuse_part(metadata: dict[str, Any], path: Path) -> None:
    """One file of several is no model, whether it stands alone or was joined to the others byte by byte."""
    count, number = metadata.get("split.count"), metadata.get("split.no")
    if isinstance(count, int) and count > 1:
        part = number + 1 if isinstance(number, int) else 1
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
        first = path.with_name(f"{stem}-00001-of-{count:05}.gguf")
        raise ModelError(
            f"{path} is part {part} of {count} of a model that was split; kvcli reads models of one file",
            f"llama-gguf-split --merge {shlex.quote(str(first))} {shlex.quote(stem + '.gguf')}",
        )


def _check_extent(header: GgufHeader, path: Path) -> None:
    """Refuse a file in which a tensor is longer than what there is, or which goes on after its last tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    end, size = 0, path.stat().st_size
    for name, (shape, kind, begin) in header.shapes.items():
        try:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ModelError(f"{path}: the tensor {name} has the type {kind}, which is not known") from None
        stop = begin + math.prod(shape) // block * width
        if stop > size:
            raise ModelError(f"damaged GGUF file: {path} ends at byte {size:,}, its tensor {name} at {stop:,}")
        end = max(end, stop)
    if size - end >= 1 << 20:
        raise ModelError(
            f"damaged GGUF file: {path} goes on for {size - end:,} bytes after its last tensor: were files joined?"
        )


def bits(path: Path) -> int:
    """Bits per weight in a file, from its size."""
    return round(8 * path.stat().st_size / max(1, read_header(path).parameters))


def content_key(path: Path) -> str:
    """The sha256 of the file, whatever its path; all of it is read once and remembered."""
    return file_digest.sha256(path)


def convert(source: Path, target: Path, name: str) -> Generator[Convert, None, list[str]]:
    """Dequantise ``source`` into the directory ``target``; return notes for the user.

    ``target`` must be a temporary name: what an interrupted conversion leaves in it is not a model.
    """
    header = read_header(source)
    _check_extent(header, source)
    total = header.tensors
    yield Convert(name, 0, total)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = target.parent / f"{target.name}.log"
    command = child_process.own_module("kvcli.models.gguf", str(source.absolute()), str(target.absolute()))
    offline = {"HF_HUB_OFFLINE": "1"}
    with (
        log.open("wb") as errors,
        child_process.running(command, stderr=errors, environment=offline, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            done, _, of = line.partition(" ")
            if done.isdecimal() and of.strip().isdecimal():
                yield Convert(name, min(int(done), int(of)), int(of))
        status = child.wait()
    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
    log.unlink()
    if status == _EXIT_DISK:
        raise ResourceError(f"the disk is full: {source.name} could not be converted into {target.parent}")
    if status == _EXIT_UNKNOWN:
        raise ModelError(f"{source} cannot be converted: {last[0]}", "name the model's safetensors instead")
    if status < 0:
        raise ResourceError(f"converting {source.name} was killed by signal {-status}: not enough memory?")
    if status:
        raise ModelError(f"damaged or unsupported GGUF file: {source} ({last[0]})")
    yield Convert(name, total, total)
    notes: list[str] = json.loads((target / "notes.json").read_text())
    (target / "notes.json").unlink()
    return notes


def main() -> int:
    """The child process, given a GGUF file and a folder: everything heavy, nothing on a screen."""
    source, target = map(Path, sys.argv[1:])
    _report_progress()
    light_imports.install()
    import transformers

    header = read_header(source)
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # a transformers that has it keeps the weights packed otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
        "local_files_only": True,
    }
    try:
        import torch

        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            **place,
            **options,
            dtype=torch.bfloat16,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused here, with their names
        )
        require_all(found, source.name)
        _restore_rope(model.config, header, source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
        notes = _restore_splitting(tokenizer, header)
        window = header.count("context_length")
        if window:
            tokenizer.model_max_length = window
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        (target / "notes.json").write_text(json.dumps(notes))
    except (ModelError, ValueError, NotImplementedError) as error:
        print(f"{error}".splitlines()[0] if str(error) else repr(error), file=sys.stderr)
        return _EXIT_UNKNOWN
    except OSError as error:
        print(error, file=sys.stderr)
        return _EXIT_DISK if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return 0


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
