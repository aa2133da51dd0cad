"""The header of a GGUF file: metadata and where its tensors are. A model may be split into several files."""

import math
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from kvcli.errors import ModelError

# Fixed-size GGUF value types by their number; 8 is a string and 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
_SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

_HEADER = 256 << 20
"""Bytes a header may take; the largest vocabularies need 20 MB."""

_STRING_BYTES, _DIMENSIONS, _SHORT = 64 << 20, 8, 4096


class GgufTensor(NamedTuple):
    """One tensor of a file: its dimensions, the fastest first; the number of its type; where its data begins."""

    shape: tuple[int, ...]
    kind: int
    begin: int
    file: Path


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file, or of a model that was split into several.

    Attributes:
        metadata: by key. Arrays of texts, and those of more than 4,096 numbers, are None.
        tensors, parameters: how many.
        shapes: by name, where each tensor is.
        files: all parts.
    """

    metadata: dict[str, Any]
    tensors: int
    parameters: int
    shapes: dict[str, GgufTensor] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

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
    """The metadata and the tensor table, of all parts if the model was split.

    Raises:
        ModelError: the file is not a whole GGUF, or a part of the model is missing; names it.
    """
    first = _read_one(path)
    count, number = first.metadata.get("split.count"), first.metadata.get("split.no")
    if not isinstance(count, int) or count < 2:
        return first
    part = number + 1 if isinstance(number, int) else 1
    stem, named = re.subn(r"-\d{5}-of-\d{5}$", "", path.stem)
    paths = [path.with_name(f"{stem}-{i + 1:05}-of-{count:05}{path.suffix}") for i in range(min(count, 99_999))]
    if not named or paths[part - 1] != path:
        expected = paths[min(part, len(paths)) - 1].name
        raise ModelError(f"{path} is part {part} of {count} of a model that was split; it must be called {expected}")
    missing = [p for p in paths if not p.is_file()]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{path} is part {part} of {count} of a model that was split, and {missing[0].name}{more} is not beside it",
            f"put all {count} parts into {path.parent}",
        )
    headers = [first if p == path else _read_one(p) for p in paths]
    for i, header in enumerate(headers):
        if header.metadata.get("split.no") != i or header.metadata.get("split.count") != count:
            raise ModelError(f"{paths[i]} is not part {i + 1} of {count}: its header says another number")
    shapes = {name: tensor for header in headers for name, tensor in header.shapes.items()}
    total = headers[0].metadata.get("split.tensors.count", len(shapes))
    if total != len(shapes):
        raise ModelError(f"damaged GGUF file: {path}: its parts have {len(shapes):,} tensors instead of {total:,}")
    return GgufHeader(headers[0].metadata, len(shapes), sum(h.parameters for h in headers), shapes, tuple(paths))


def _read_one(path: Path) -> GgufHeader:
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except (struct.error, EOFError, UnicodeDecodeError, KeyError, MemoryError, OverflowError, RecursionError) as error:
        raise ModelError(f"damaged GGUF file: {path} (its header is invalid: {error})") from None
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
            if count <= _SHORT:
                return [scalar(_SCALARS[item]) for _ in range(count)]
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
    metadata = dict[str, Any]()
    for _ in range(entries):
        key = string()
        metadata[key] = value(scalar("<I"))
    parameters, shapes = 0, dict[str, GgufTensor]()
    for _ in range(tensors):
        name, dimensions = string(), scalar("<I")
        if dimensions > _DIMENSIONS:
            raise EOFError(f"a tensor of {dimensions:,} dimensions")
        shape = tuple(scalar("<Q") for _ in range(dimensions))
        kind, offset = scalar("<I"), scalar("<Q")
        parameters += math.prod(shape)
        shapes[name] = GgufTensor(shape, kind, offset, path)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise EOFError(f"an alignment of {alignment}")
    data = -(-file.tell() // alignment) * alignment
    shapes = {name: tensor._replace(begin=data + tensor.begin) for name, tensor in shapes.items()}
    last = max((tensor.begin for tensor in shapes.values()), default=0)
    if last >= limit:
        raise ModelError(f"damaged GGUF file: {path} ends at byte {limit:,}, its last tensor begins at {last:,}")
    return GgufHeader(metadata, tensors, parameters, shapes, (path,))


def check_extent(header: GgufHeader) -> None:
    """Refuse files in which a tensor is longer than what there is, or which go on after their last tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    ends = dict.fromkeys(header.files, 0)
    for name, (shape, kind, begin, path) in header.shapes.items():
        try:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ModelError(f"{path}: the tensor {name} has the type {kind}, which is not known") from None
        stop, size = begin + math.prod(shape) // block * width, path.stat().st_size
        if stop > size:
            raise ModelError(f"damaged GGUF file: {path} ends at byte {size:,}, its tensor {name} at {stop:,}")
        ends[path] = max(ends[path], stop)
    for path, end in ends.items():
        spare = path.stat().st_size - end
        if end and spare >= 1 << 20:
            raise ModelError(
                f"damaged GGUF file: {path} goes on for {spare:,} bytes after its last tensor: were files joined?"
            )


class Keys:
    """The metadata of one file, by the keys of its architecture."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.layers = int(self.need("block_count")) - int(self.get("nextn_predict_layers") or 0)

    def get(self, key: str, default: Any = None) -> Any:
        found = self.header.metadata.get(f"{self.header.architecture}.{key}")
        return default if found is None else found

    def need(self, key: str) -> Any:
        if (found := self.get(key)) is None:
            raise ModelError(f"it has no {self.header.architecture}.{key}, or too long a list")
        return found

    def most(self, key: str) -> int:
        """A number, or the largest of a list with one for each layer."""
        found = self.need(key)
        return max(found) if isinstance(found, list) else int(found)

    def has(self, end: str) -> bool:
        """Whether a tensor's name ends like this."""
        return any(name.endswith(end) for name in self.header.shapes)

    def kinds(self, every: int | None = None) -> list[str]:
        """Which layers have windows; if the file does not say, all but one of ``every``."""
        pattern = self.get("attention.sliding_window_pattern", every) or self.need("attention.sliding_window_pattern")
        if not isinstance(pattern, list):
            pattern = [(i + 1) % int(pattern) != 0 for i in range(self.layers)]
        return ["sliding_attention" if sliding else "full_attention" for sliding in pattern[: self.layers]]
