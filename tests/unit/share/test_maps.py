"""Share maps: chains end at an owner, and what is no map is said in one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcli.errors import DamagedError, ModelError, UsageError
from kvcli.recipe import parse
from kvcli.share import maps
from tests import tiny

_SPEC = tiny.load("llama").spec


def test_a_chain_ends_at_its_owner() -> None:
    assert maps.parse("0_1_0_2") == (0, 1, 0, 0)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12))
def test_every_borrower_gets_a_lower_owner_that_owns_itself(numbers: list[int]) -> None:
    owners = maps.parse(maps.join([n % (i + 1) for i, n in enumerate(numbers)]))
    assert all(owners[o] == o <= i for i, o in enumerate(owners))
    assert maps.parse(maps.join(owners)) == owners == maps.resolve(owners)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0_2_1", "cycle: 1 → 2 → 1"),
        ("1_2_0", "cycle: 0 → 1 → 2 → 0"),
        ("3_2_1_3", "cycle: 1 → 2 → 1"),
        ("0_2_2", "layer 1 borrows from layer 2"),
        ("0_1_9", "layer 2 borrows from layer 9"),
        ("0_-1", "layer 1 borrows from layer -1"),
        ("0_x", "0_x"),
        ("0__1", "0__1"),
    ],
)
def test_what_is_no_map(text: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        parse(f"full+kvsharer(map={text})")


@pytest.mark.parametrize(
    ("family", "text", "wrong"),
    [("llama", "0_1_0_2", "4 layers.*3"), ("llama", "0", "1 layers.*3"), ("gemma3", "0_0_0", "layer 1.*layer 0")],
)
def test_a_map_of_another_model(family: str, text: str, wrong: str) -> None:
    with pytest.raises(ModelError, match=wrong):
        parse(f"full+kvsharer(map={text})").for_model(tiny.load(family).spec)


def test_what_is_stored_is_found_and_checked(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path))
    recipe = parse("full+kvsharer")
    with pytest.raises(ModelError) as missing:
        recipe.for_model(_SPEC)
    assert "kvcli calibrate" in (missing.value.hint or "")
    where = maps.save(_SPEC, (0, 0, 2), {"tokens": 5})
    assert str(recipe.for_model(_SPEC)) == "full+kvsharer(map=0_0_2)"
    assert recipe.share.owners(_SPEC) == (0, 0, 2)
    for changed, error in (({"identity": "other"}, ModelError), ({"map": "0_2_1"}, ModelError), (None, DamagedError)):
        facts = json.loads(where.read_text())
        where.write_text("[" if changed is None else json.dumps({**facts, **changed}))
        with pytest.raises(error):
            recipe.for_model(_SPEC)
        where.write_text(json.dumps(facts))
