"""The option ``--budget``: units as a number, a share of the document, or memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kvcli.errors import UsageError
from kvcli.types import ModelSpec

if TYPE_CHECKING:
    from kvcli.recipe import Recipe

_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHAPE = re.compile(r"(?P<number>\d[\d_,]*(?:\.\d+)?)\s*(?P<unit>%|[KMG]?i?B)?", re.IGNORECASE)
FORMS = "--budget 16384, --budget 12% or --budget 2GiB"


@dataclass(frozen=True)
class Budget:
    """``value`` units per KV head, per cent of the document's tokens, or bytes of kept keys and values."""

    value: float
    unit: Literal["units", "%", "bytes"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse a budget. Raises ``UsageError`` for invalid ones and for zero."""
        match = _SHAPE.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--budget {text} is not a number, a percentage or a size", FORMS)
        value = float(re.sub("[_,]", "", match["number"]))
        unit = (match["unit"] or "").upper()
        if value <= 0:
            raise UsageError(f"--budget {text} keeps nothing; the smallest budget is 1", FORMS)
        if unit == "%":
            if value > 100:
                raise UsageError(f"--budget {text} is more than the whole document", "--budget 100%")
            return cls(value, "%")
        if unit:
            return cls(value * _UNITS[unit], "bytes")
        if value != int(value):
            raise UsageError(f"--budget {text} is not a whole number", FORMS)
        return cls(value, "units")

    def units(self, spec: ModelSpec, tokens: int) -> int:
        """Return units per KV head for a model and a document of ``tokens``."""
        if self.unit == "units":
            return int(self.value)
        if self.unit == "%":
            return max(1, round(tokens * self.value / 100))
        full = (spec.of_layer(i) for i, w in enumerate(spec.sliding) if w is None and spec.has_units(i))
        row = sum(layer.unit_bytes * layer.kv_heads for layer in full)
        units = int(self.value // max(1, row))
        if not units:
            raise UsageError(
                f"--budget of {self.value:,.0f} bytes is too small: one KV pair per head takes {row:,} bytes",
                f"--budget {row * 1024 // 2**20 + 1}MiB",
            )
        return units


def combinations(
    recipes: Sequence[Recipe],
    budgets: Sequence[Budget],
    spec: ModelSpec,
    tokens: int,
    usual: Callable[[int | None], Recipe],
) -> list[Recipe]:
    """Every recipe with every budget for a document of ``tokens``, each once; ``usual(units)`` if none is named."""
    found: list[Recipe] = []
    sizes: list[int | None] = [budget.units(spec, tokens) for budget in budgets]
    for units in sizes or [None]:
        for recipe in recipes or [usual(units)]:
            found.append(recipe if units is None or recipe.policy.budget is None else recipe.with_budget(units))
    return list({str(recipe): recipe for recipe in found}.values())
