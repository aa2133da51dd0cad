"""A saved prefill as one safetensors file: a header with a description, then tensors. Imports no torch.

    8 bytes     length of the header
    header      {"__metadata__": {"kvcli": description as JSON, "sha256": …}, "name": {dtype, shape, data_offsets}, …}
    data        the tensors, without gaps

The digest covers every byte of the file but itself, so a damaged file is always noticed. A file is written under a
temporary name, flushed to disk and renamed: other processes see all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvcli.errors import DamagedError
from kvcli.prompt_cache.key import FORMAT, CacheKey
from kvcli.utils import files as file_utils
from kvcli.utils.from_json import from_json

SUFFIX = ".kv"
MAGIC = b'{"__metadata__": {"kvcli": '
"""How the header of a saved prefill begins."""

_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LONGEST_HEADER = 16 * 2**20
_NO_DIGEST = "0" * 64
_BLOCK = 2**20
_MOST = 2**31
"""Tokens; ids and places are 32-bit integers."""


@dataclass(frozen=True)
class Meta:
    """The description in the header of a saved prefill.

    Attributes:
        identity: model, recipe, text and all else that the numbers depend on.
        seen: tokens that were prefilled.
        tokens: tokens of the whole text; more than ``seen`` in a checkpoint.
        edge: the resume point, after which a longer text can continue from this file; 0 for none. In a checkpoint,
            ``seen``.
        prefix: digest of the first ``edge`` token ids.
        kept: units per KV head of the layer that keeps most.
        model: the model's name.
        files: names of the documents.
        origin: the command that made it: ``prefill`` or ``ask``.
        made: date and time, UTC.
        program: versions of kvcli and torch.
        device: of the prefill.
        system, raw: how the prompt was made.
        recipe: with its storage; a file fits any other storage too.
    """

    identity: CacheKey
    seen: int
    tokens: int
    edge: int
    prefix: str
    kept: int
    model: str
    files: tuple[str, ...]
    origin: str
    made: str
    program: str
    device: str
    system: str | None = None
    raw: bool = False
    recipe: str = ""

    @property
    def complete(self) -> bool:
        return self.seen == self.tokens


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written; ``data()`` is called when its turn comes and returns little-endian bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], bytes | memoryview]

    @property
    def nbytes(self) -> int:
        return _SIZES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class CacheHeader:
    """The header of a saved prefill.

    Attributes:
        path: the file.
        meta: its description.
        digest: of the file, as the header states it.
        tensors: per name: dtype, shape, and where its bytes begin and end in the file.
        size: of the file.
    """

    path: Path
    meta: Meta
    digest: str
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]
    size: int

    def read(self, name: str) -> bytes:
        """A tensor's bytes. Raises ``DamagedError`` if there is no such tensor."""
        if name not in self.tensors:
            raise damaged(self.path, f"it has no '{name}'")
        _, _, begin, end = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)


def damaged(path: Path, why: str) -> DamagedError:
    """The error for a damaged file."""
    return DamagedError(f"{path} is damaged or not a saved prefill: {why}", "kvcli prefill FILE -o book.kv")


def write(path: Path, meta: Meta, blobs: Sequence[LazyTensor]) -> None:
    """Write a saved prefill, completely or not at all. Raises ``OSError``."""
    blobs = sorted(blobs, key=lambda b: -_SIZES[b.dtype])  # the largest numbers first keeps all of them aligned
    head = _head(meta, blobs)
    with file_utils.atomic_write(path) as temporary, temporary.open("wb") as file:
        total = hashlib.sha256(head)
        file.write(head)
        for blob in blobs:
            data = memoryview(blob.data()).cast("B")
            if len(data) != blob.nbytes:
                raise ValueError(f"{blob.name} has {len(data)} bytes, not {blob.nbytes}")
            total.update(data)
            file.write(data)
        file.seek(head.index(_NO_DIGEST.encode()))
        file.write(total.hexdigest().encode())


def copy(source: Path, target: Path) -> None:
    """Copy a file, completely or not at all. Raises ``OSError``."""
    with file_utils.atomic_write(target) as temporary, source.open("rb") as old, temporary.open("wb") as new:
        shutil.copyfileobj(old, new, _BLOCK)


def update_metadata(found: CacheHeader, meta: Meta) -> None:
    """Rewrite a saved prefill with another description. Raises ``OSError``."""
    blobs = [LazyTensor(n, d, s, partial(found.read, n)) for n, (d, s, _, _) in found.tensors.items()]
    write(found.path, meta, blobs)


def _head(meta: Meta, blobs: Sequence[LazyTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"kvcli": "", "sha256": _NO_DIGEST}}
    at = 0
    for blob in blobs:
        header[blob.name] = {"dtype": blob.dtype, "shape": blob.shape, "data_offsets": (at, at + blob.nbytes)}
        at += blob.nbytes
    # The digest's place is found by its zeros, so it comes before any text of a document.
    header["__metadata__"] = {"kvcli": str(FORMAT), "sha256": _NO_DIGEST, "meta": json.dumps(asdict(meta))}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def looks_like(path: Path) -> bool:
    """Whether a file is a saved prefill, by its name or its first bytes."""
    try:
        if not path.is_file():  # reading from a pipe would consume it
            return False
        with path.open("rb") as file:
            return path.suffix == SUFFIX or file.read(8 + len(MAGIC))[8:] == MAGIC
    except (OSError, ValueError):
        return False


def header(path: Path) -> CacheHeader:
    """The checked header of a saved prefill; the tensors' bytes are not checked.

    Raises:
        DamagedError: it is no saved prefill, has another version, or contradicts itself.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise damaged(path, "it does not begin like a safetensors file")
        text = file.read(length)
    try:
        content = json.loads(text)
        described = content.pop("__metadata__")
        version, digest = described["kvcli"], described["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(path, "its header cannot be read") from None
    if version != str(FORMAT):
        raise DamagedError(
            f"{path}: its version is {str(version)[:20]}, and this kvcli reads version {FORMAT}",
            "read the document again",
        )
    try:
        meta = from_json(Meta, json.loads(described["meta"]))
        (meta.system or "").encode()  # it goes to the tokenizer
        tensors = {str(name): _tensor(entry, 8 + length) for name, entry in content.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"its header is invalid ({str(error)[:80]})") from None
    at = 8 + length
    for _, _, begin, end in sorted(tensors.values(), key=lambda t: t[2:]):
        if begin != at:
            raise damaged(path, "its tensors overlap or leave gaps")
        at = end
    if at != size:
        raise damaged(path, f"it should have {at:,} bytes and has {size:,}")
    if not 0 <= meta.edge <= meta.seen <= meta.tokens < _MOST:
        raise damaged(path, f"its numbers do not fit: {meta.edge} <= {meta.seen} <= {meta.tokens}")
    if not (1 <= meta.identity.chunk < _MOST and 0 <= meta.identity.horizon < _MOST and 0 <= meta.kept < _MOST):
        raise damaged(path, f"its numbers do not fit: chunks of {str(meta.identity.chunk)[:40]} tokens")
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise damaged(path, "its digest is not a SHA-256")
    if odd := [name for name, value in asdict(meta.identity).items() if not _ascii(value)]:
        raise damaged(path, f"its {odd[0]} is not a text that kvcli writes")
    return CacheHeader(path, meta, str(digest), tensors, size)


def _ascii(value: object) -> bool:
    return not isinstance(value, str) or (value.isascii() and value.isprintable())


def _tensor(entry: Any, start: int) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape = entry["dtype"], from_json(tuple[int, ...], entry["shape"])
    begin, end = from_json(tuple[int, int], entry["data_offsets"])
    if min(shape, default=0) < 0 or not 0 <= begin <= end or end - begin != _SIZES[dtype] * math.prod(shape):
        raise ValueError("a tensor's size does not fit its shape")
    return dtype, shape, start + begin, start + end


def verify(found: CacheHeader) -> None:
    """Read the whole file and compare its digest. Raises ``DamagedError``."""
    total = hashlib.sha256()
    with found.path.open("rb") as file:
        head = file.read(8)
        head += file.read(struct.unpack("<Q", head)[0])
        total.update(head.replace(found.digest.encode(), _NO_DIGEST.encode(), 1))
        while block := file.read(_BLOCK):
            total.update(block)
    if total.hexdigest() != found.digest:
        raise damaged(found.path, "its checksum does not match")
