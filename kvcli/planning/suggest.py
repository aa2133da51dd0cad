"""Which models of the catalogue a machine can run, for ``kvcli models suggest``. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvcli.errors import ModelError
from kvcli.events import drain
from kvcli.models import spec as model_spec
from kvcli.models.catalogue import ALIASES, Alias
from kvcli.models.default_model import DEFAULT
from kvcli.models.defaults import default_chunk
from kvcli.models.heads_on_disk import heads_bytes
from kvcli.models.resolve import resolve
from kvcli.planning import speed_history
from kvcli.planning.estimate import Forecast, Target, Workload, forecast
from kvcli.recipe import default
from kvcli.types import ANSWER_TOKENS, CHUNK, QUESTION_TOKENS, WEIGHTS, ModelSpec

LONGEST_READ_S = 30 * 60
"""Seconds of prefill that a suggested model may take on a machine whose speed is known."""

BUDGET_STEP, LEAST_BUDGET = 256, 2048
"""A model that fits with at least so many units and not with its default budget is suggested with the smaller one."""

TEXT_BYTES = 5
"""Bytes of text per token, roughly, for the saved prefill."""


_Tried = tuple[int | None, Forecast]
"""A budget that is smaller than the default, or ``None``, and what the run takes with it."""


@dataclass(frozen=True)
class Suggestion:
    """One model on one machine.

    Attributes:
        alias: the model.
        budget: units to keep if the default budget does not fit; ``None`` for the default.
        weights: precision of its weights: the first of :data:`kvcli.types.WEIGHTS` that fits, else the smallest.
        forecast: what the run takes.
        weight_bytes: of the weights, for each of :data:`kvcli.types.WEIGHTS` that it can have.
        seconds: of prefill, from the measured speed of the default model and the parameters that a token uses; ``None``
            if nothing was measured, or for another machine.
    """

    alias: Alias
    budget: int | None
    weights: str
    forecast: Forecast
    weight_bytes: dict[str, int]
    seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether it fits the memory, and is not too slow as far as that is known."""
        return self.forecast.fits and (self.seconds is None or self.seconds <= LONGEST_READ_S)


def suggest(target: Target, *, device: str, dtype: str, tokens: int) -> list[Suggestion]:
    """Every model of the catalogue on ``target``, the smallest first.

    Args:
        target: the machine.
        device: ``cpu`` or ``cuda:0``, as it is named there.
        dtype: of weights and cache.
        tokens: of the document.
    """
    work = Workload(tokens, tokens * TEXT_BYTES, CHUNK, QUESTION_TOKENS, ANSWER_TOKENS)
    cost = _cost(device, dtype) if target.here else None
    found = []
    for alias in ALIASES.values():
        held = WEIGHTS[: 1 if "quantization_config" in alias.config else None]
        sizes = {kind: model_spec.spec(alias.source(), device="cpu", dtype=dtype, stored=kind) for kind in held}
        for weights in held:
            budget, best = _forecast(sizes[weights], device, work, target)
            if best.fits:
                break
        seconds = None if cost is None else cost * alias.active * tokens
        stored = {kind: spec.weight_bytes for kind, spec in sizes.items()}
        found.append(Suggestion(alias, budget, weights, best, stored, seconds))
    return found


def best(found: Sequence[Suggestion]) -> Suggestion | None:
    """The largest one that fits and can be downloaded without accepting terms first; ``None`` if none fits."""
    able = (s for s in found if s.fits and s.alias.suggested and not s.alias.gated)
    return max(able, key=lambda s: s.alias.parameters, default=None)


def _forecast(sizes: ModelSpec, device: str, work: Workload, target: Target) -> _Tried:
    spec = replace(sizes, device=device)  # the device need not be in this machine
    recipe, work = default(spec), replace(work, chunk=default_chunk(spec))
    found = forecast(spec, recipe, work, target)
    smaller = (found.budget or 0) // BUDGET_STEP * BUDGET_STEP
    if found.fits or smaller < LEAST_BUDGET or smaller >= (recipe.policy.budget or 0):
        return None, found
    return smaller, forecast(spec, recipe.with_budget(smaller), work, target)


def _cost(device: str, dtype: str) -> float | None:
    """Seconds per active parameter and token of prefill here, from runs of the default model."""
    alias = ALIASES[DEFAULT]
    try:
        source = drain(resolve(DEFAULT, offline=True, only_config=True))
    except ModelError:
        return None
    spec = model_spec.spec(source, device=device, dtype=dtype)
    heads = bool(heads_bytes(source, spec))
    rate = speed_history.measured(spec, default(spec, heads=heads)).prefill
    return None if rate is None else 1 / (rate * alias.parameters)
