"""Retaining heads on this disk: where they are, and which belong to a model, from headers alone. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvcli.errors import ModelError, ResourceError
from kvcli.models import weights
from kvcli.models.weights import ModelSource
from kvcli.types import DTYPE_BYTES, ModelSpec
from kvcli.utils import files

SHIPPED = Path(__file__).parents[1] / "retaining_heads" / "shipped"


def heads_identity(source: ModelSource, spec: ModelSpec) -> str | None:
    """The model's identity for retaining heads (:func:`kvcli.retaining_heads.checkpoint.identity`); ``None`` without
    weights."""
    for shard in weights.shards(source.path) if source.complete else ():
        head = weights.header(shard)
        last = ("model.norm.weight", "model.final_layernorm.weight")
        for tensor in (t for name, t in json.loads(head).items() if name.endswith(last)):
            begin, end = tensor["data_offsets"]
            with shard.open("rb") as file:
                file.seek(8 + len(head) + begin)
                numbers = _as_bfloat16(file.read(end - begin), tensor["dtype"])
            sizes = [spec.layers, spec.heads, spec.kv_heads, spec.head_dim, spec.hidden, spec.intermediate, spec.vocab]
            return hashlib.sha256(json.dumps(sizes).encode() + numbers).hexdigest()[:12]
    return None


def _as_bfloat16(data: bytes, dtype: str) -> bytes:
    import numpy as np

    if dtype == "BF16":
        return data
    bits = np.frombuffer(data, np.float16 if dtype == "F16" else np.float32).astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()  # to the nearest, ties to even


def folder() -> Path:
    """The directory in which ``kvcli train`` stores heads. Raises ``ResourceError``."""
    return files.private_dir(files.data_dir() / "heads")


def folders() -> list[Path]:
    """Where heads are looked for: the user's own folder, if there can be one, and the heads shipped with kvcli."""
    with suppress(ResourceError):
        return [folder(), SHIPPED]
    return [SHIPPED]


def local(where: str) -> Path | None:
    """The file or directory ``where`` that a user names; ``None`` if it can only be a hub repository.

    Raises:
        ModelError: it is the name of a file, and there is none.
    """
    path = Path(where).expanduser()
    if path.exists():
        return path
    if path.suffix in (".safetensors", ".bin") or where.startswith((".", "/", "~")):
        raise ModelError(f"there is no heads file {where}", f"kvcli train -o {where}")
    return None


def heads_bytes(source: ModelSource, spec: ModelSpec, places: Sequence[Path] | None = None) -> int:
    """Bytes of this model's retaining heads if one of ``places`` (:func:`folders`) has them, else 0. Reads headers."""
    own = heads_identity(source, spec)
    for place in (folders() if places is None else places) if own is not None else ():
        for path in sorted(place.glob("*.safetensors")):
            identity, numbers = _card(path)
            if identity == own:
                return numbers * DTYPE_BYTES[spec.dtype]
    return 0


def _card(path: Path) -> tuple[str | None, int]:
    """The model that a file of heads belongs to, and how many numbers the file has."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 2**24)))
        found = json.loads(header.pop("__metadata__")["card"]).get("identity")
        return str(found) if found else None, sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None, 0
