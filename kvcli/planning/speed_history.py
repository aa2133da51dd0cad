"""How fast this machine has read and answered so far: what ``kvcli plan`` says about time. Imports no torch.

One small JSON in the cache folder, 0600, written whole or not at all. A rate belongs to a model, a device, a dtype and
the kind of a recipe; the median of the last few runs is what counts, so that one run on a busy machine decides nothing.
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
"""Runs that are remembered of each kind."""

MOST = 500
"""Kinds that are remembered; the oldest go first."""

LEAST_READ, LEAST_SAID = 256, 8
"""Tokens below which a run says more about its start than about its speed."""


@dataclass(frozen=True)
class Rates:
    """Medians in tokens per second, and of how many runs; ``None`` and 0 where nothing was measured."""

    prefill: float | None = None
    decode: float | None = None
    prefill_runs: int = 0
    decode_runs: int = 0


def place() -> Path:
    """Path of the file with the measured speeds."""
    return files.cache_dir() / "rates.json"


def record(
    spec: ModelSpec, recipe: Recipe, *, read: int = 0, read_s: float = 0.0, said: int = 0, said_s: float = 0.0
) -> None:
    """Remember one run. What cannot be written is not remembered: a run never fails because of this.

    Args:
        spec: the model on its device.
        recipe: of the reading.
        read, read_s: tokens of prefill, and the seconds they took.
        said, said_s: tokens of the answer after its first one, and theirs.
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
        known[key] = mine  # the newest kind stands last
        _write(path, dict(list(known.items())[-MOST:]))


def measured(spec: ModelSpec, recipe: Recipe) -> Rates:
    """What is known of this kind of run on this machine."""
    mine: dict[str, Any] = {}
    with suppress(OSError, KvcliError):
        mine = _load(place()).get(_key(spec, recipe), {})
    read, said = _numbers(mine.get("prefill")), _numbers(mine.get("decode"))
    return Rates(median(read) if read else None, median(said) if said else None, len(read), len(said))


def _key(spec: ModelSpec, recipe: Recipe) -> str:
    return " ".join((spec.fingerprint, spec.device, spec.dtype, f"{recipe.policy.name}+{recipe.storage.name}"))


def _load(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is not there or is damaged, and the next run writes it anew."""
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
