"""Share maps: per layer, the layer whose units it uses. As text ``0_1_0_3``, and as stored by ``kvcli calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from kvcli.errors import UsageError
from kvcli.types import ModelSpec
from kvcli.utils import calibration_file

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


def save(spec: ModelSpec, owners: Sequence[int], facts: dict[str, object]) -> Path:
    """Store the share map of a model. Raises ``ResourceError``."""
    return calibration_file.save("share", spec, {"map": join(owners), **facts})


def stored(spec: ModelSpec) -> str:
    """Read the stored share map of a model.

    Raises:
        ModelError: there is none, or it belongs to another model.
        DamagedError: the file is not a share map.
    """
    return str(calibration_file.load("share", spec, "map", term="kvsharer", what="share map", command=COMMAND))
