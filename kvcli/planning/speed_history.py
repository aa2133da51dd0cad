"""Measured speeds of earlier runs, for ``kvcli plan``. Imports no torch.

One small JSON file in the cache directory, 0600, written atomically. A rate belongs to a model, a device, a dtype and a
pair of policy and storage. The median of the last few runs counts, so that one run on a busy machine decides nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from kvcli.errors import KvcliError
from kvcli.utils import files

if TYPE_CHECKING:
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec

LAST = 5
"""Runs remembered per kind."""

MOST = 500
"""Kinds remembered; the oldest are dropped."""

LEAST_READ, LEAST_SAID = 256, 8
"""Minimum tokens of a measured run; shorter runs mainly measure start-up."""


@dataclass(frozen=True)
class Rates:
    """Median tokens per second, and the number of runs; ``None`` and 0 without measurements."""

    prefill: float | None = None
    decode: float | None = None
    prefill_runs: int = 0
    decode_runs: int = 0


def place() -> Path:
    """Return the path of the file with the measured speeds."""
    return files.cache_dir() / "rates.json"


def record(
    spec: ModelSpec, recipe: Recipe, *, read: int = 0, read_s: float = 0.0, said: int = 0, said_s: float = 0.0
) -> None:
    """Record one run. Failing to write never fails the run.

    Args:
        spec: the model on its device.
        recipe: the recipe.
        read, read_s: tokens of prefill, and their seconds.
        said, said_s: tokens of the answer after its first one, and their seconds.
    """
    measured = {}
    if read >= LEAST_READ and read_s > 0:
        measured["prefill"] = read / read_s
    if said >= LEAST_SAID and said_s > 0:
        measured["decode"] = said / said_s
    if not measured:
        return
    with suppress(OSError, KvcliError):
        path = place()
        known = _load(path)
        key = _key(spec, recipe)
        mine = known.pop(key, {})
        for name, rate in measured.items():
            mine[name] = [*_numbers(mine.get(name)), round(rate, 3)][-LAST:]
        known[key] = mine  # the newest kind is last
        _write(path, dict(list(known.items())[-MOST:]))


def measured(spec: ModelSpec, recipe: Recipe) -> Rates:
    """Return the measured rates of this kind of run on this machine."""
    mine: dict[str, Any] = {}
    with suppress(OSError, KvcliError):
        mine = _load(place()).get(_key(spec, recipe), {})
    read, said = _numbers(mine.get("prefill")), _numbers(mine.get("decode"))
    return Rates(median(read) if read else None, median(said) if said else None, len(read), len(said))


def _key(spec: ModelSpec, recipe: Recipe) -> str:
    return " ".join((spec.fingerprint, spec.device, spec.dtype, f"{recipe.policy.name}+{recipe.storage.name}"))


def _load(path: Path) -> dict[str, Any]:
    """Read the file; empty if it is missing or damaged, and the next run rewrites it."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _numbers(value: Any) -> list[float]:
    kept = value if isinstance(value, list) else []
    return [float(n) for n in kept if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < 1e12]


def _write(path: Path, content: dict[str, Any]) -> None:
    with files.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content))
