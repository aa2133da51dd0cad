"""Share maps: per layer, the layer whose units it uses. As text ``0_1_0_3``, and as stored by ``kvcli calibrate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from kvcli.errors import DamagedError, ModelError, ResourceError, UsageError
from kvcli.types import ModelSpec
from kvcli.utils import files

COMMAND = "kvcli calibrate --share N TEXT…"


@lru_cache(maxsize=256)
def parse(text: str) -> tuple[int, ...]:
    """Read a share map; a layer that borrows from a borrower gets that one's owner.

    Raises:
        UsageError: not whole numbers, or a layer borrows from itself by way of others or from a higher layer.
    """
    try:
        owners = [int(part) for part in text.split("_")]
    except ValueError:
        raise UsageError(f"the share map '{text}' is not layer numbers joined by underscores", "map=0_1_0_3") from None
    for layer, owner in enumerate(owners):
        if not 0 <= owner < len(owners):
            raise UsageError(f"layer {layer} borrows from layer {owner}, and the share map has {len(owners):,} layers")
    for layer in range(len(owners)):
        path = [layer]
        while owners[path[-1]] not in path:
            path.append(owners[path[-1]])
        if owners[path[-1]] != path[-1]:
            raise UsageError(f"the share map has a cycle: {' → '.join(map(str, [*path, owners[path[-1]]]))}")
    for layer, owner in enumerate(owners):
        if owner > layer:
            raise UsageError(
                f"layer {layer} borrows from layer {owner}, whose keys do not exist yet: only models trained for that,"
                " such as Layer-Condensed ones, can",
                f"map={join([min(pair) for pair in enumerate(owners)])}",
            )
    return resolve(owners)


def resolve(owners: Sequence[int]) -> tuple[int, ...]:
    """Replace borrowers as owners by their own owners; no owner is above its borrower: ``0 1 0 2`` to ``0 1 0 0``."""
    found: list[int] = []
    for layer, owner in enumerate(owners):
        found.append(owner if owner == layer else found[owner])
    return tuple(found)


def join(owners: Sequence[int]) -> str:
    """Write a share map as :func:`parse` reads it."""
    return "_".join(map(str, owners))


def alike(spec: ModelSpec, layer: int, owner: int) -> bool:
    """Whether two layers can share: same window and same heads."""
    one, other = spec.of_layer(layer), spec.of_layer(owner)
    sizes = [(s.heads, s.kv_heads, s.head_dim) for s in (one, other)]
    return spec.sliding[layer] == spec.sliding[owner] and sizes[0] == sizes[1]


def path(spec: ModelSpec) -> Path:
    """Return where the share map of a model is stored, whatever its weights are quantized to."""
    return files.data_dir() / "share" / f"{spec.base_fingerprint}.json"


def save(spec: ModelSpec, owners: Sequence[int], facts: dict[str, object]) -> Path:
    """Store the share map of a model. Raises ``ResourceError``."""
    where = path(spec)
    files.private_dir(where.parent)
    made = {"model": spec.name, "identity": spec.base_fingerprint, "map": join(owners), **facts}
    try:
        with files.atomic_write(where) as temporary:
            temporary.write_text(json.dumps(made, indent=1), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {where}: {error.strerror}") from None
    return where


def stored(spec: ModelSpec) -> str:
    """Read the stored share map of a model.

    Raises:
        ModelError: there is none, or it belongs to another model.
        DamagedError: the file is not a share map.
    """
    where = path(spec)
    again = COMMAND.replace("calibrate", f"calibrate -m {spec.name}")
    if not where.exists():
        raise ModelError(f"kvsharer needs a calibration, and none exists for {spec.name}", again)
    try:
        made = json.loads(where.read_text("utf-8"))
        text, identity = str(made["map"]), made["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{where} is not a share map: {error}", again) from error
    if identity != spec.base_fingerprint:
        raise ModelError(f"the share map {where} was made for {made.get('model')}, and this is {spec.name}", again)
    return text
