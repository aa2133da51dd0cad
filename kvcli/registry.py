"""Discovery of policies: one module per policy in ``kvcli.eviction`` and ``kvcli.storage``, plus installed entry
points.

A policy is named after its module, so listing names does not import torch. Plugins use an entry point of the group
``kvcli.eviction`` or ``kvcli.storage`` with the policy's name and class.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Literal

from kvcli.errors import UsageError

Axis = Literal["eviction", "storage"]

_BASES = {"eviction": "EvictionPolicy", "storage": "KVStorage"}

_NOT_POLICIES = {
    "base",
    "hashing",
    "matching",
    "merging",
    "offload",
    "packed",
    "row_codec",
    "selection",
    "smoothing",
    "staging",
}


def _builtin(axis: Axis) -> list[str]:
    spec = find_spec(f"kvcli.{axis}")
    assert spec is not None
    paths = spec.submodule_search_locations
    return [m.name for m in pkgutil.iter_modules(paths) if m.name not in _NOT_POLICIES]


def _plugins(axis: Axis) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"kvcli.{axis}")}


def names(axis: Axis) -> list[str]:
    """List all policies of an axis, sorted, without importing them."""
    return sorted({*_builtin(axis), *_plugins(axis)})


def lookup(axis: Axis, name: str) -> type[Any]:
    """Return the class of a policy.

    Raises:
        UsageError: no policy has this name, or a plugin's class is not a policy.
    """
    base: type[Any] = getattr(importlib.import_module(f"kvcli.{axis}.base"), _BASES[axis])
    if name in _builtin(axis):
        module = importlib.import_module(f"kvcli.{axis}.{name}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
        (cls,) = [c for c in classes if c.__module__ == module.__name__]
        return cls
    plugin = _plugins(axis).get(name)
    if plugin is None:
        raise UsageError(f"unknown {axis} policy '{name}'; expected one of {', '.join(names(axis))}", "kvcli recipes")
    cls = plugin.load()
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UsageError(f"the plugin '{name}' ({plugin.value}) is not a kvcli.{axis}.base.{base.__name__}")
    return cls
