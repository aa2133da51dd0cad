"""What every evicting policy can be combined with: uneven layers, and victims that are merged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.engine.prefill import prefill_steps
from kvcli.errors import UsageError
from kvcli.events import drain
from kvcli.eviction.knorm import Knorm
from kvcli.eviction.merging import MERGED, merge
from kvcli.planning.positions import kept_units
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import asked, distance, filled, reference

MODEL = tiny.load("llama")


@given(budget=st.integers(1, 5000), layers=st.integers(1, 80), pyramid=st.floats(0, 0.99))
def test_a_pyramid_costs_what_its_budget_says(budget: int, layers: int, pyramid: float) -> None:
    units = [Knorm(budget=budget, stabilizers=0, pyramid=pyramid).units(i, layers) for i in range(layers)]
    assert units == sorted(units, reverse=True)
    assert abs(sum(units) - layers * budget) <= layers
    assert min(units) >= 1


def test_a_pyramid_never_cuts_into_what_is_protected() -> None:
    keep = Knorm(budget=100, stabilizers=30, sinks=10, pyramid=0.95)
    assert [keep.units(i, 3) for i in range(3)] == [172, 88, 40]
    with pytest.raises(UsageError, match="below 1"):
        Knorm(pyramid=1.0)


def test_layers_keep_what_the_plan_says() -> None:
    recipe = "locret(budget=24, stabilizers=4, pyramid=0.5)"
    work = filled(MODEL, tiny.document(100), recipe, 16)
    counts = [layer.count for layer in work.layers]
    assert counts == [36, 24, 12]
    assert counts == [kept_units(MODEL.spec, parse(recipe), 100, i) for i in range(3)]
    assert bool(asked(MODEL, tiny.document(100), tiny.document(5), recipe, 16).isfinite().all())


def test_nothing_is_merged_where_nothing_is_lost() -> None:
    body, question = tiny.document(50), tiny.document(6, seed=1)
    got = asked(MODEL, body, question, "knorm(budget=50, victims=merge)", 16)
    assert distance(got, reference(MODEL, body + question)[-6:]) < 1e-5
    dropped = asked(MODEL, body, question, "knorm(budget=20)", 16)
    merged = asked(MODEL, body, question, "knorm(budget=20, victims=merge)", 16)
    assert distance(dropped, merged) > 1e-3


def test_merging_is_an_average_with_the_most_similar_survivor() -> None:
    k = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [-1.0, -1.0]]])
    v = torch.tensor([[[4.0, 0.0], [0.0, 2.0], [0.0, 4.0], [9.0, 9.0]]])
    out = merge(k, v, torch.tensor([[0, 1]]), {})
    cosine = 0.9 / (0.82**0.5)
    weight = cosine * 0.5  # equally long values
    assert torch.allclose(out[0, 0], (v[0, 0] + weight * v[0, 2]) / (1 + weight))
    assert torch.equal(out[0, 1], v[0, 1])  # what points away from every survivor has no weight


@given(st.integers(0, 1000))
def test_merging_equal_values_changes_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(2, 12, 4, generator=generator)
    v = torch.randn(2, 1, 4, generator=generator).expand(2, 12, 4)
    index = torch.stack([torch.randperm(12, generator=generator)[:5].sort().values for _ in range(2)])
    assert torch.allclose(merge(k, v, index, {}), v[:, :5], atol=1e-5)


@given(
    budget=st.integers(40, 5000),
    layers=st.integers(2, 80),
    pyramid=st.floats(0.01, 0.99),
    protected=st.floats(0, 1),
)
def test_a_pyramid_costs_its_budget_also_if_floors_lift_layers(
    budget: int, layers: int, pyramid: float, protected: float
) -> None:
    """The sum over layers is the budget's but for rounding, the shares fall, and no layer is below its floor."""
    policy = Knorm(budget=budget, stabilizers=int(protected * budget), pyramid=pyramid)
    units = [policy.units(i, layers) or 0 for i in range(layers)]
    assert abs(sum(units) - budget * layers) <= layers
    assert units == sorted(units, reverse=True)
    assert min(units) >= policy.protected


def test_h2o_keeps_the_newest_half_at_the_end_of_a_text() -> None:
    """Its docstring promises it; the last chunk once dropped it."""
    model, ids = tiny.load("llama"), tiny.document(60)
    for chunk in (7, 20, 60):
        work = drain(prefill_steps(model, ids, parse("h2o(budget=20)"), chunk=chunk))
        for layer in work.layers:
            assert layer.pos[:, 10:20].tolist() == [list(range(50, 60))] * model.spec.kv_heads


def test_what_was_merged_first_does_not_fade() -> None:
    """A survivor that has absorbed much moves little; masses add up to those of survivors and victims' shares."""
    k, v = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    index = torch.arange(4).expand(2, 4)
    light: dict[str, torch.Tensor] = {}
    heavy = {MERGED: torch.full((2, 4), 1000.0)}
    one, two = merge(k, v, index, light), merge(k, v, index, heavy)
    assert (two - v[:, :4]).norm() < (one - v[:, :4]).norm() / 50
    assert bool((light[MERGED] >= 1).all())
    assert torch.allclose(heavy[MERGED] - 999.0, light[MERGED], atol=1e-3)
    again = merge(torch.cat([k[:, :4], k[:, :3]], 1), torch.cat([one, v[:, 6:]], 1), index, light)
    assert again.shape == one.shape
    assert bool((light[MERGED] >= 1).all())
