"""A model on this disk: whether its files and tensors are complete, and its fingerprint. Imports no torch."""

import hashlib
import json
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcli.errors import ModelError
from kvcli.utils import files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PACKED = "decode-packed.safetensors"
"""In the directory of a converted model: the weights of 4 and 8 bits that a CPU decodes with."""
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)


SHOWN = 3
"""Names of each kind in a message."""

_WRITES = re.compile(r"CausalLM|LMHead|ConditionalGeneration|Generat")
"""In the names of classes that generate text."""

_CONSTANTS = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")
"""Tables that old checkpoints hold and models compute."""


@dataclass(frozen=True)
class ModelSource:
    """A model on this disk.

    ``path`` is a directory for ``from_pretrained(path, local_files_only=True)``: config, safetensors,
    tokenizer. ``complete`` is False only after ``only_config`` if the weights are not on this disk.
    """

    name: str
    path: Path
    origin: str  # directory | hub | gguf | wheel
    revision: str | None = None  # the hub's commit, or the key of the GGUF it was made from
    licence: str | None = None
    notes: tuple[str, ...] = ()  # warnings about this copy of the model
    complete: bool = True
    bits: int = 0  # per weight in the quantised file that it was made from; 0 if there was none

    @property
    def few_bits(self) -> bool:
        """Whether 4 or 8 bits a weight lose nothing beside what its file has lost: a CPU decodes with as many."""
        return 0 < self.bits <= 8

    @property
    def quantized(self) -> str | None:
        """How the checkpoint itself is quantised, as its config says."""
        config = self.config
        found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
        return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else None

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stay when the directory moves and change when the config or the weights do."""
        return fingerprint(self.path)

    @property
    def bytes(self) -> int:
        """Size of the weights on disk; 0 if there are none."""
        return sum(shard.stat().st_size for shard in shards(self.path)) if self.complete else 0

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")


class DamagedModel(ModelError):
    """A damaged file; downloading it again helps."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``. Raises :class:`ModelError` if the file is damaged."""
    try:
        data = path.read_bytes()
        if data.startswith(b"version https://git-lfs"):
            raise _pointer(path)
        content = json.loads(data)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedModel(f"damaged file: {path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamagedModel(f"damaged file: {path} is not a JSON object")
    return content


def check(directory: Path, *, weights: bool = True) -> list[Path]:
    """Refuse a directory that ``from_pretrained`` could not load, and name the file; returns the weight files.

    ``weights=False`` needs the config and the tokenizer only, and returns the shards that exist.
    """
    if not (directory / "config.json").is_file():
        raise _without_config(directory)
    read_json(directory / "config.json")
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{directory} has no tokenizer (none of {', '.join(TOKENIZERS[:3])})")
    try:
        found = shards(directory)
        for shard in found:
            header(shard)
    except ModelError:
        if weights:
            raise
        return []
    return found


def shards(directory: Path) -> list[Path]:
    """The weight files in ``directory``, sorted. Raises :class:`ModelError` if one is missing."""
    index = directory / INDEX
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise DamagedModel(f"damaged file: {index} has no weight_map")
        wanted = sorted({str(name) for name in names.values()})
        missing = [name for name in wanted if not (directory / name).is_file()]
        if missing:
            raise ModelError(
                f"incomplete model: {directory} lacks {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                + f" of {len(wanted)} weight files that {INDEX} names"
            )
        return [directory / name for name in wanted]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / "adapter_config.json").is_file():
        raise _adapter(directory)
    others = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if others:
        raise ModelError(
            f"{directory} has its weights only as pickle ({others[0]}), not as safetensors",
            "convert it with transformers: from_pretrained(…).save_pretrained(…)",
        )
    raise ModelError(f"{directory} has no weights ({SINGLE} or {INDEX})")


def header(shard: Path) -> bytes:
    """The JSON header of a safetensors file. Raises :class:`ModelError` if the file's length contradicts it."""
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            first = file.read(8)
            if first == b"version ":
                raise _pointer(shard)
            length = int.from_bytes(first, "little")
            if size < 8 or length > size - 8:
                raise _damaged(shard, f"its header ends at byte {length + 8:,}, the file at {size:,}")
            content = file.read(length)
    except OSError as error:
        raise ModelError(f"cannot read {shard}: {error.strerror}") from None
    try:
        tensors = {k: v for k, v in json.loads(content).items() if k != "__metadata__"}
        end = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _damaged(shard, "its header is not that of a safetensors file") from None
    if end != size:
        raise _damaged(shard, f"expected {end:,} bytes, it has {size:,}")
    return content


def fingerprint(directory: Path) -> str:
    """A short hash that names a model wherever it is: its config, and the name and the whole content of each shard.

    Two fine-tunes of one model may differ in a few numbers only. The content is read once and remembered
    (:mod:`kvcli.utils.files`).
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(struct.pack("<Q", len(part)))  # two lists of parts never join into the same bytes
        digest.update(part)

    try:
        add((directory / "config.json").read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {directory / 'config.json'}: {error.strerror}") from None
    try:
        found = shards(directory)
    except ModelError:
        found = []
    for shard in found:
        try:
            add(f"{shard.name} {files.sha256(shard)}".encode())
        except OSError as error:
            raise ModelError(f"cannot read {shard}: {error.strerror}") from None
    return digest.hexdigest()[:16]


def former_fingerprint(directory: Path) -> str:
    """The fingerprint that kvcli 0.1.0 gave to a model: 16 samples of 4 KiB of each shard instead of all of it.

    Names the model in files of that time; nothing new is saved under it.
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)

    add((directory / "config.json").read_bytes())
    for shard in shards(directory):
        content, size = header(shard), shard.stat().st_size
        add(f"{shard.name} {size}".encode())
        add(content)
        begin = 8 + len(content)
        with shard.open("rb") as file:
            for index in range(16):
                file.seek(begin + index * (size - begin) // 16)
                add(file.read(4096))
    return digest.hexdigest()[:16]


def _damaged(shard: Path, why: str) -> DamagedModel:
    return DamagedModel(f"damaged file: {shard} ({why})")


def _pointer(file: Path) -> DamagedModel:
    return DamagedModel(
        f"{file} is a Git LFS pointer: the text that names the file, not the file itself",
        f"git -C {shlex.quote(str(file.parent))} lfs pull",
    )


def _adapter(directory: Path) -> ModelError:
    base = read_json(directory / "adapter_config.json").get("base_model_name_or_path") or "unknown"
    return ModelError(
        f"{directory} is an adapter (LoRA) for {base}, not a model",
        "merge it into its base model and name that",
    )


def _without_config(directory: Path) -> ModelError:
    if (directory / "adapter_config.json").is_file():
        return _adapter(directory)
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs:
        return ModelError(f"{directory} has no config.json, but a GGUF file", f"-m {ggufs[0]}")
    return ModelError(f"{directory} has no config.json: it is not a model's directory")


def require_all(found: Mapping[str, Any], name: str, *, spare: bool = False, made: Sequence[str] = ()) -> None:
    """Refuse a model whose tensors were missing, had another shape or were not its own.

    Args:
        found: what ``from_pretrained(…, output_loading_info=True)`` reports; it leaves tied tensors out.
        name: of the model.
        spare: tensors that the model does not have are no fault, as in quantised checkpoints.
        made: the classes that the checkpoint was saved from, as its config says.

    Raises:
        ModelError: with the first names of each kind.
    """
    mismatched = [
        f"{key} ({_shape(theirs)} instead of {_shape(ours)})" for key, theirs, ours in sorted(found["mismatched_keys"])
    ]
    foreign = [] if spare else [key for key in sorted(found["unexpected_keys"]) if not _CONSTANTS.search(key)]
    kinds = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": mismatched,
        "not in this architecture": foreign,
        "not read": sorted(map(str, found.get("error_msgs") or ())),
    }
    faults = [_fault(kind, names) for kind, names in kinds.items() if names]
    if faults and made and not any(_WRITES.search(cls) for cls in made):
        raise ModelError(f"{name} is a {made[0]}, which does not generate text", "kvcli models ls lists models that do")
    if faults:
        raise ModelError(
            f"{name} has not the weights that its config.json describes: {'; '.join(faults)}",
            "fetch the model again, or ask who converted it",
        )


def _fault(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,} {'tensor' if len(names) == 1 else 'tensors'} {kind}: {', '.join(names[:SHOWN])}{more}"


def _shape(shape: Any) -> str:
    return "×".join(map(str, shape)) or "a number"
