"""What nobody uses is freed at once: keys and values do not wait until Python looks for cycles."""

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, prefill, prefill_steps
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import answer, drain


@pytest.fixture
def counted() -> Iterator[None]:
    """Objects die by their reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=24)", "full+kivi", "full+quest", "full+infinigen"])
def test_a_context_and_a_tail(model, recipe: str) -> None:
    context = drain(prefill(model(), tiny.document(80), parse(recipe), chunk=16))
    tail = new_decode_cache(model(), context)
    answer(model(), tail, tiny.document(6, seed=2))
    parts = [ref(context), ref(context.layers[0]), ref(tail), ref(tail.layers[0])]
    del context, tail
    assert [part() for part in parts] == [None] * len(parts)


@pytest.mark.usefixtures("counted")
def test_a_fill_and_its_copy(model) -> None:
    recipe, ids = parse("keydiff(budget=24)"), tiny.document(80)
    work = drain(prefill_steps(model(), ids, recipe, chunk=16))
    twin, parts = work.copy(), [ref(work), ref(work.layers[0])]
    del work
    assert [part() for part in parts] == [None, None]
    assert drain(evict_turns(model(), twin, ids, recipe, chunk=16)).seen == 160
    parts = [ref(twin), ref(twin.layers[0])]
    del twin
    assert [part() for part in parts] == [None, None]
