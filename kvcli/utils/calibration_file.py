"""Files of what was measured of a model once: JSON in the data directory, found by the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from kvcli.errors import DamagedError, ModelError, ResourceError
from kvcli.utils import files


class Measured(Protocol):
    """Identifies a model (:class:`kvcli.types.ModelSpec`)."""

    @property
    def name(self) -> str: ...

    @property
    def base_fingerprint(self) -> str: ...


def path(kind: str, spec: Measured) -> Path:
    """Return where a model's file is, whatever its weights are quantized to."""
    return files.data_dir() / kind / f"{spec.base_fingerprint}.json"


def save(kind: str, spec: Measured, facts: dict[str, Any]) -> Path:
    """Write a model's file. Raises ``ResourceError``."""
    where = path(kind, spec)
    files.private_dir(where.parent)
    made = {"model": spec.name, "identity": spec.base_fingerprint, **facts}
    try:
        with files.atomic_write(where) as temporary:
            temporary.write_text(json.dumps(made, indent=1), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {where}: {error.strerror}") from None
    return where


def load(kind: str, spec: Measured, key: str, *, term: str, what: str, command: str) -> Any:
    """Read one value of a model's file.

    Args:
        kind: its folder.
        spec: the model.
        key: of the value.
        term: the recipe's term that needs it, for messages.
        what: what the file is.
        command: makes it; ``-m`` and the model are added.

    Raises:
        ModelError: there is none, or it belongs to another model.
        DamagedError: the file is none of these.
    """
    where = path(kind, spec)
    again = command.replace("calibrate", f"calibrate -m {spec.name}")
    if not where.exists():
        raise ModelError(f"{term} needs a calibration, and none exists for {spec.name}", again)
    try:
        made = json.loads(where.read_text("utf-8"))
        value, identity = made[key], made["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{where} is not a {what}: {error}", again) from error
    if identity != spec.base_fingerprint:
        raise ModelError(f"the {what} {where} was made for {made.get('model')}, and this is {spec.name}", again)
    return value
