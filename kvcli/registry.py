"""Discovery of the terms of recipes: one module per term in the package of its axis, plus installed entry points.

A term is named after its module, so listing names does not import torch. Plugins use an entry point of the group
``kvcli.AXIS`` with the term's name and class. No two axes have a name in common.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Literal, get_args

from kvcli.errors import UsageError

Axis = Literal["eviction", "share", "fold", "sparse_prefill", "storage"]
"""Packages of terms, in the order of a recipe."""

KINDS: dict[Axis, str] = {
    "eviction": "eviction policy",
    "share": "layer sharing",
    "fold": "fold",
    "sparse_prefill": "sparse prefill",
    "storage": "KV storage",
}
"""What a term of each axis is called."""

_BASES: dict[Axis, str] = {
    "eviction": "EvictionPolicy",
    "share": "LayerSharing",
    "fold": "Fold",
    "sparse_prefill": "SparsePrefill",
    "storage": "KVStorage",
}

_NOT_TERMS = {
    "base",
    "chunk",
    "maps",
    "matching",
    "merging",
    "offload",
    "packed",
    "patterns",
    "row_codec",
    "row_layer",
    "selection",
    "smoothing",
    "vertical_slash",
}


@cache
def _builtin(axis: Axis) -> list[str]:
    spec = find_spec(f"kvcli.{axis}")
    assert spec is not None
    paths = spec.submodule_search_locations
    return [m.name for m in pkgutil.iter_modules(paths) if m.name not in _NOT_TERMS]


def _plugins(axis: Axis) -> dict[str, EntryPoint]:
    return {point.name: point for point in _entry_points(axis, tuple(sys.path))}


@lru_cache(maxsize=8)
def _entry_points(axis: Axis, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Reads the metadata of every installed package, which takes 20 ms."""
    return tuple(entry_points(group=f"kvcli.{axis}"))


def names(axis: Axis) -> list[str]:
    """List all terms of an axis, sorted, without importing them."""
    return sorted({*_builtin(axis), *_plugins(axis)})


def axis_of(name: str) -> Axis | None:
    """Return the axis of a term; ``None`` for an unknown name.

    Raises:
        UsageError: plugins give the name to two axes.
    """
    axes: list[Axis] = [axis for axis in get_args(Axis) if name in names(axis)]
    if len(axes) > 1:
        raise UsageError(f"'{name}' is a {KINDS[axes[0]]} and a {KINDS[axes[1]]}", "remove a plugin: pip list")
    return axes[0] if axes else None


def lookup(axis: Axis, name: str) -> type[Any]:
    """Return the class of a term.

    Raises:
        UsageError: no term of the axis has this name, or a plugin's class is not one.
    """
    base: type[Any] = getattr(importlib.import_module(f"kvcli.{axis}.base"), _BASES[axis])
    if name in _builtin(axis):
        module = importlib.import_module(f"kvcli.{axis}.{name}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
        (cls,) = [c for c in classes if c.__module__ == module.__name__]
        return cls
    plugin = _plugins(axis).get(name)
    if plugin is None:
        raise UsageError(f"unknown {KINDS[axis]} '{name}'; expected one of {', '.join(names(axis))}", "kvcli recipes")
    cls = plugin.load()
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UsageError(f"the plugin '{name}' ({plugin.value}) is not a kvcli.{axis}.base.{base.__name__}")
    return cls
