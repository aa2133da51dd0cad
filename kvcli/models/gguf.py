"""A GGUF file, dequantised once and kept as bf16 safetensors.

transformers knows the tensor names, the permuted query and key rows and the tokenizers of many
architectures; kvcli does not repeat that. The conversion runs in a process of its own (:func:`main`), because
transformers draws bars and logs to the screen, needs the whole model in memory, and can be killed for it. Its
standard output is one ``done total`` pair a line.
"""

import errno
import hashlib
import json
import os
import struct
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kvcli.errors import ModelError, ResourceError
from kvcli.events import Convert
from kvcli.models.tensor_check import require_all
from kvcli.utils import child_process

# Fixed-size GGUF value types by their number; 8 is a string and 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
_SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# Byte-level BPE whose digits stand alone (llama.cpp: "\p{N}", then the GPT-2 rule). transformers 5.23 splits
# these as GPT-2 does, which reads "\n\n7" as three tokens where the model was trained on two.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_GPT2 = {"default", "gpt-2", "gpt2", "phi-2", "olmo", "dolma"}

_EXIT_DISK, _EXIT_UNKNOWN = 5, 4


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file. Arrays (the vocabulary, head counts that differ by layer) are None."""

    metadata: dict[str, Any]
    tensors: int
    parameters: int

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
    """The metadata and the tensor table; :class:`ModelError` where the file is not a whole GGUF."""
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except (struct.error, EOFError, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
        raise ModelError(f"damaged GGUF file: {path} (its header makes no sense: {error})") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def _read_header(file: IO[bytes], path: Path) -> GgufHeader:
    def take(size: int) -> bytes:
        if size > limit:  # a damaged length must not ask for terabytes
            raise EOFError(f"a length of {size:,} bytes in a file of {limit:,}")
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
            take(struct.calcsize(_SCALARS[item]) * count)
        else:
            for _ in range(count):
                value(item)
        return None

    limit = path.stat().st_size
    if file.read(4) != b"GGUF":
        raise ModelError(f"not a GGUF file: {path} (it does not begin with the letters GGUF)")
    version = scalar("<I")
    if version not in (2, 3):
        raise ModelError(f"{path} is GGUF version {version}; kvcli reads 2 and 3")
    tensors, entries = scalar("<Q"), scalar("<Q")
    metadata = {}
    for _ in range(entries):
        key = string()
        metadata[key] = value(scalar("<I"))
    parameters, last = 0, 0
    for _ in range(tensors):
        string()
        count = 1
        for _ in range(scalar("<I")):
            count *= scalar("<Q")
        parameters += count
        scalar("<I")
        last = max(last, scalar("<Q"))
    begin = file.tell() + last  # the data of the last tensor starts at least here
    if begin >= limit:
        raise ModelError(f"damaged GGUF file: {path} ends at byte {limit:,}, its last tensor begins at {begin:,}")
    return GgufHeader(metadata, tensors, parameters)


def content_key(path: Path) -> str:
    """A key for the contents, whatever the path: size, both ends and 64 samples between them.

    A full sha256 would read all of an 8 GB file on every start. The first MiB holds the metadata;
    two quantisations differ in size, and training or re-quantising moves practically every block, so 64
    samples of 64 KiB do not miss it. A file edited by hand in one place might be missed; nobody's model is
    made that way.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    edge, sample, samples = 1 << 20, 1 << 16, 64
    with path.open("rb") as file:
        digest.update(file.read(edge))
        for index in range(samples):
            file.seek(index * size // samples)
            digest.update(file.read(sample))
        file.seek(max(0, size - edge))
        digest.update(file.read(edge))
    return digest.hexdigest()


def convert(source: Path, target: Path, name: str) -> Generator[Convert, None, list[str]]:
    """Dequantise ``source`` into the directory ``target``; return notes for the user.

    ``target`` must be a temporary name: what an interrupted conversion leaves in it is not a model.
    """
    total = read_header(source).tensors
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
