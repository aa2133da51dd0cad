"""Which retaining heads on this disk belong to a model, from headers alone. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

from kvcli.models import weights
from kvcli.models.source import ModelSource
from kvcli.types import DTYPE_BYTES, ModelSpec


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


def heads_bytes(source: ModelSource, spec: ModelSpec, folders: list[Path]) -> int:
    """Bytes of this model's retaining heads if one of these folders has them, else 0. Reads headers only."""
    own = heads_identity(source, spec)
    for folder in folders if own is not None else []:
        for path in sorted(folder.glob("*.safetensors")):
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
