"""The plan says what is allocated, and refuses with numbers."""

import dataclasses

import pytest

from kvcli import registry
from kvcli.cache.context import freeze
from kvcli.errors import ResourceError, TooLongError
from kvcli.planning import memory
from kvcli.planning.positions import check_positions, kept_units
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import filled


@pytest.fixture(scope="module")
def model():
    return tiny.load("llama")


@pytest.mark.parametrize("recipe", ["full", "knorm(budget=24)", "knorm(budget=24, tail=7)", "knorm(budget=500)"])
@pytest.mark.parametrize("tokens", [10, 100, 300])
def test_planned_bytes_are_the_allocated_ones(model, recipe: str, tokens: int) -> None:
    plan = memory.plan(model.spec, parse(recipe), tokens=tokens, chunk=16, tail=0)
    fill = filled(model, tiny.document(tokens), recipe, 16)
    assert plan.prefill + plan.workspace * 2 // 3 == fill.nbytes


def test_sliding_layers_are_planned_as_windows() -> None:
    spec = tiny.load("gemma3").spec
    assert [kept_units(spec, parse("full"), 100, i) for i in range(3)] == [15, 100, 15]
    assert [kept_units(spec, parse("knorm(budget=20)"), 100, i) for i in range(3)] == [15, 20, 15]


def test_a_plan_that_does_not_fit_is_refused_with_numbers(model) -> None:
    plan = memory.plan(model.spec, parse("knorm(budget=9999999999)"), tokens=10**9, chunk=512, tail=0)
    with pytest.raises(ResourceError) as error:
        plan.check(2**30, "cpu")
    assert "1.0 GiB free" in error.value.message
    assert "--budget" in (error.value.hint or "")
    plan.check(2**60, "cpu")


@pytest.mark.parametrize(
    ("recipe", "tokens", "room"),
    [
        ("full", 400, 512 - 410),
        ("knorm(budget=100)", 400, 512 - 116),
        ("knorm(budget=100)", 10**6, 512 - 116),
        ("knorm(budget=100)", 50, 512 - 60),
        ("knorm(budget=400, tail=50)", 10**6, 512 - 466),
        ("knorm(budget=100, positions=original)", 400, 512 - 410),
    ],
)
def test_room_for_the_answer(model, recipe: str, tokens: int, room: int) -> None:
    assert check_positions(model.spec, parse(recipe), tokens=tokens, chunk=16, question=10) == room


@pytest.mark.parametrize("recipe", ["full", "knorm(budget=100, positions=original)", "knorm(budget=505)"])
def test_what_leaves_the_window_is_refused(model, recipe: str) -> None:
    with pytest.raises(TooLongError) as error:
        check_positions(model.spec, parse(recipe), tokens=600, chunk=16, question=10)
    assert "512" in error.value.message
    assert error.value.hint


def test_a_bigger_budget_costs_more(model) -> None:
    spec = dataclasses.replace(model.spec, dtype="bfloat16")
    sizes = [
        memory.plan(spec, parse(f"knorm(budget={b})"), tokens=10**5, chunk=512, tail=64).total for b in (64, 1024, 8192)
    ]
    assert sizes == sorted(sizes)


LAWFUL = [n for n in registry.names("eviction") if n != "full" and not parse(n).policy.pyramid]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAWFUL)
def test_the_plan_grows_with_everything_but_the_document(model, name: str, dtype: str, device: str) -> None:
    spec = dataclasses.replace(model.spec, dtype=dtype, device=device)

    def total(budget: int = 256, tokens: int = 5000, chunk: int = 128, tail: int = 64, probe: int = 9) -> int:
        recipe = parse(f"{name}(budget={budget}, stabilizers=8, sinks=4)")
        return memory.plan(spec, recipe, tokens=tokens, chunk=chunk, tail=tail, probe=probe).total

    for key, values in {
        "budget": (16, 100, 256, 257, 2000, 4999, 5000),
        "chunk": (1, 7, 100, 127, 128, 129, 512, 4096),
        "tail": (0, 1, 64, 2000),
        "probe": (0, 1, 64),
        "tokens": (1, 10, 255, 256, 257, 300),
    }.items():
        sizes = [total(**{key: value}) for value in values]
        assert sizes == sorted(sizes), key
        assert key == "tokens" or sizes[0] < sizes[-1], key
    kept = parse(f"{name}(budget=256, sinks=4)").units(0, 1) or 0
    assert len({total(tokens=n) for n in (kept, kept + 1, 1000, 10**6, 10**9)}) == 1
    assert total(budget=5001) == total(budget=10**6)  # nor with a budget beyond the document


@pytest.mark.parametrize("hold", ["dense", "int8", "kivi(bits=4)", "kivi(bits=2)", "turbo(bits=2)"])
@pytest.mark.parametrize("tokens", [10, 64, 300])
def test_planned_bytes_once_it_is_read_are_those_of_the_context(model, hold: str, tokens: int) -> None:
    """What is held is as the policy says; the peak, while all is still exact, does not fall with it."""
    recipe = parse(f"knorm(budget=64)+{hold}")
    plan = memory.plan(model.spec, recipe, tokens=tokens, chunk=16, tail=9)
    context = freeze(filled(model, tiny.document(tokens), str(recipe), 16), recipe.storage)
    assert plan.context == context.nbytes + context.host_nbytes
    assert plan.total >= memory.plan(model.spec, parse("knorm(budget=64)"), tokens=tokens, chunk=16, tail=9).total


def test_what_freezing_takes_for_a_moment_is_planned(model) -> None:
    """At first it is a matter of the layer's size, then of a block's; and a chat's fill stays beside the context."""

    def made(hold: str, budget: int) -> memory.Plan:
        return memory.plan(model.spec, parse(f"knorm(budget={budget}){hold}"), tokens=10**6, chunk=16, tail=0)

    for budget in (1000, 10_000):
        assert made("+kivi", budget).workspace > made("", budget).workspace
    assert made("+kivi", 10**6).workspace < 1.2 * made("", 10**6).workspace
    for hold in ("", "+int8", "+kivi(bits=2)", "+turbo(fill=true)"):
        recipe, plan = parse(f"knorm(budget=1000){hold}"), made(hold, 1000)
        work = filled(model, tiny.document(300), str(recipe), 16)
        both = memory.with_resident_cache(plan, model.spec, recipe, tokens=10**6).prefill
        assert both == plan.prefill + plan.context + 4 * 1000 * model.spec.kv_heads * model.spec.layers
        small = memory.plan(model.spec, recipe, tokens=300, chunk=16, tail=0)
        kept = freeze(work, recipe.storage, release=False)
        own = work.nbytes - work.workspace.nbytes
        places = sum(layer.pos.nbytes for layer in kept.layers)
        assert memory.with_resident_cache(small, model.spec, recipe, tokens=300).prefill == own + kept.nbytes + places


def test_the_kernels_blocks_are_as_planned() -> None:
    from kvcli_kernels.attention import blocked

    assert (blocked._BLOCK, blocked.MAX_KEYS) == (memory._BLOCK, memory._BLOCKED_KEYS)
