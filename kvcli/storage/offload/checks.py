"""What hyper-parameters may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.storage.base import KVStorage


def at_least(hold: KVStorage, **least: float) -> None:
    """Raises ``UsageError`` where a field is below its least value."""
    for key, value in least.items():
        if not getattr(hold, key) >= value:
            raise UsageError(f"{hold.name}: {key} must be {value:g} or more, got {getattr(hold, key):g}")
