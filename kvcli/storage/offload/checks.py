"""Checks of hyper-parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.storage.base import KVStorage


def at_least(storage: KVStorage, **least: float) -> None:
    """Raise ``UsageError`` if a field is below its minimum."""
    for key, value in least.items():
        if not getattr(storage, key) >= value:
            raise UsageError(f"{storage.name}: {key} must be {value:g} or more, got {getattr(storage, key):g}")
