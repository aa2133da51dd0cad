"""What is suggested fits, by the plan's own arithmetic, and nothing larger does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from kvcli.planning import speed_history
from kvcli.planning.estimate import Target
from kvcli.planning.suggest import LONGEST_READ_S, Suggestion, best, suggest

SIZES = (0.01, 0.5, 3, 5.4, 7.4, 11.4, 23.4, 200)


@cache
def on_gpu(gib: float, tokens: int = 100_000) -> list[Suggestion]:
    target = Target("a GPU", int(gib * 2**30), here=False)
    return suggest(target, device="cuda:0", dtype="bfloat16", tokens=tokens)


@pytest.mark.parametrize("gib", SIZES)
def test_the_largest_that_fits(gib: float) -> None:
    found = on_gpu(gib)
    for each in found:
        plan = each.forecast.plan
        assert plan is not None
        assert each.forecast.fits == (plan.total <= gib * 2**30)
        few = "bf16" if "quantization_config" in each.alias.config else "nf4"  # what comes quantised stays so
        assert each.weights == few or each.forecast.fits
        assert each.seconds is None  # nothing was measured on another machine
    chosen = best(found)
    fitting = [each for each in found if each.forecast.fits and each.alias.suggested and not each.alias.gated]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert chosen.alias.parameters == max(each.alias.parameters for each in fitting)


def test_a_larger_gpu_never_gets_a_smaller_model() -> None:
    sizes = [chosen.alias.parameters if (chosen := best(on_gpu(gib))) else 0 for gib in SIZES]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert len(set(sizes)) > 5


def test_a_smaller_budget_is_one_that_fits() -> None:
    """A budget below the default one is used if the default one does not fit, and only then."""
    for gib in SIZES:
        for each in on_gpu(gib):
            if each.budget is not None:
                assert each.forecast.fits
                assert each.forecast.budget is not None
                assert 2048 <= each.budget <= each.forecast.budget


def test_a_slow_machine_gets_what_it_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the parameters take twice the time; what takes too long is not suggested, whatever its memory."""
    here = Target("this machine", 2**40)
    monkeypatch.setattr("kvcli.planning.suggest._cost", lambda *_: 1e-11)
    found = suggest(here, device="cpu", dtype="float32", tokens=100_000)
    assert all(each.seconds == pytest.approx(each.alias.active * 1e-6) for each in found)
    chosen = best(found)
    assert chosen is not None
    assert chosen.seconds is not None
    assert chosen.seconds <= LONGEST_READ_S
    longer = suggest(here, device="cpu", dtype="float32", tokens=10_000_000)
    chosen_longer = best(longer)
    assert chosen_longer is None or chosen_longer.alias.parameters < chosen.alias.parameters


def test_without_a_measured_speed_nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_history, "measured", lambda *_: speed_history.Rates())
    target = replace(Target("this machine", 2**40))
    found = suggest(target, device="cpu", dtype="float32", tokens=1000)
    assert all(each.fits for each in found)
