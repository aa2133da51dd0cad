"""Files of trained feature maps: ``kvcli train --fold less`` writes them, the fold ``less`` finds them by model."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import DamagedError, ModelError
from kvcli.types import ModelSpec
from kvcli.utils import files

if TYPE_CHECKING:
    from torch import Tensor

RANK, WIDTH = 8, 64  # features of a key, as published, and hidden units; the paper has 512 for heads of 128
DIGEST = 8
_SHIPPED = Path(__file__).parent / "shipped"


def path(spec: ModelSpec) -> Path:
    """Return where the user's maps of a model are, whatever its weights are quantized to."""
    return files.data_dir() / "fold" / f"less-{spec.base_fingerprint}.safetensors"


def find(spec: ModelSpec) -> Path:
    """Return the user's maps of a model, else those shipped with kvcli. Raises ``ModelError`` if there are none."""
    own = path(spec)
    for found in (own, _SHIPPED / own.name):
        if found.exists():
            return found
    raise ModelError(f"less needs trained maps, and none exist for {spec.name}", command(spec))


def command(spec: ModelSpec) -> str:
    """The command that trains maps for a model."""
    return f"kvcli train --fold less -m {spec.name} FILE…"


def digest(spec: ModelSpec) -> str:
    """Return the digest of a model's maps. Raises as :func:`find`."""
    found = find(spec)
    return _digest(found, found.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _digest(found: Path, _changed: int) -> str:
    return hashlib.sha256(found.read_bytes()).hexdigest()[:DIGEST]


def shapes(spec: ModelSpec) -> dict[str, tuple[int, int, int]]:
    """Shapes of a layer's parameters by name: those of queries, and those of keys."""
    heads, kv_heads, dim = spec.heads, spec.kv_heads, spec.head_dim
    keys = {"w1": (dim, WIDTH), "w2": (WIDTH, RANK), "w3": (RANK, RANK), "a": (1, RANK), "b": (1, RANK)}
    return {
        "u1": (heads, dim, WIDTH),
        "u2": (heads, WIDTH, RANK),
        **{name: (kv_heads, *shape) for name, shape in keys.items()},
    }


def load(spec: ModelSpec) -> list[dict[str, Tensor]]:
    """Read the maps of a model, a dictionary per layer; those of layers with a sliding window are empty.

    Raises:
        ModelError: there are none.
        DamagedError: the file does not have the tensors of this model's layers.
    """
    from safetensors import SafetensorError, safe_open

    found = find(spec)
    try:
        with safe_open(found, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{found}: not a safetensors file: {error}", command(spec)) from error
    layers: list[dict[str, Tensor]] = []
    for i, window in enumerate(spec.sliding):
        wanted = shapes(spec.of_layer(i)) if window is None else {}
        for name, shape in wanted.items():
            have = tensors.get(f"layers.{i}.{name}")
            if have is None or tuple(have.shape) != shape:
                what = "is missing" if have is None else f"is {tuple(have.shape)} and not {shape}"
                raise DamagedError(f"{found}: layers.{i}.{name} {what}", command(spec))
        layers.append({name: tensors[f"layers.{i}.{name}"] for name in wanted})
    return layers
