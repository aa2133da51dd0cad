"""A model's directory: whether it is complete, and its fingerprint, without reading all weights."""

import hashlib
import json
import shlex
import struct
from pathlib import Path
from typing import Any

from kvcli.errors import ModelError
from kvcli.utils import file_digest

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)


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
    (:mod:`kvcli.utils.file_digest`).
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
            add(f"{shard.name} {file_digest.sha256(shard)}".encode())
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
