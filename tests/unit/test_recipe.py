"""Recipes parse, print back, and say what exists when they are wrong."""

import dataclasses
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcli import registry
from kvcli.errors import UsageError
from kvcli.recipe import default, parse
from kvcli.share.base import LayerSharing
from kvcli.sparse_prefill.base import SparsePrefill
from tests import tiny

_SPEC = tiny.load("llama").spec

CANONICAL = [
    "full",
    "keydiff(budget=1024)",
    "streaming(budget=64)",
    "streaming(budget=64, sinks=8)",
    "snapkv(budget=512, window=32)",
    "random(budget=100, stabilizers=0, seed=7)",
    "h2o(budget=1024, positions=original)",
]


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_text_prints_back_the_same(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize("name", registry.names("eviction"))
def test_defaults_round_trip(name: str) -> None:
    assert parse(str(parse(name))) == parse(name)


@given(
    budget=st.integers(64, 10**7),
    sinks=st.integers(0, 8),
    stabilizers=st.none() | st.integers(0, 16),
    tail=st.integers(0, 500),
    positions=st.sampled_from(["compact", "original"]),
    name=st.sampled_from([n for n in registry.names("eviction") if n != "full"]),
)
def test_any_fields_round_trip(name: str, **fields: object) -> None:
    keep = registry.lookup("eviction", name)(**fields)
    recipe = dataclasses.replace(parse("full"), policy=keep)
    assert parse(str(recipe)) == recipe


def test_spaces_case_and_underscores_are_free() -> None:
    assert parse(" KeyDiff ( budget = 16_384 , sinks=4 ) + dense ") == parse("keydiff(budget=16384, sinks=4)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("locrat", "keydiff"),
        ("keydiff(size=3)", "budget, stabilizers"),
        ("keydiff(budget=many)", "whole number"),
        ("keydiff(budget=1.5)", "whole number"),
        ("keydiff(budget=0)", "1 or more"),
        ("keydiff(budget=-5)", "1 or more"),
        ("keydiff(budget=10, sinks=-1)", "0 or more"),
        ("keydiff(budget=10, sinks=4, stabilizers=7)", "do not fit"),
        ("keydiff(positions=sideways)", "'compact' or 'original'"),
        ("keydiff(budget=5, budget=6)", "twice"),
        ("keydiff(1024)", "field=value"),
        ("keydiff(budget=1024", "cannot read"),
        ("keydiff+locrat", "+locrat"),
        ("keydiff+int8+locrat", "+locrat"),
        ("kivi(bits=2)", "begins with an eviction policy"),
        ("keydiff+h2o", "one eviction policy"),
        ("keydiff+kivi(bits=2)+int8", "one KV storage"),
        ("keydiff+dense+dense", "one KV storage"),
        ("keydiff++int8", "cannot read"),
        ("keydiff+", "cannot read"),
        ("full(budget=5)", "no field 'budget'"),
        ("", "cannot read"),
    ],
)
def test_mistakes_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert said in error.value.message


def test_budget_of_a_policy_without_one() -> None:
    with pytest.raises(UsageError, match="takes no budget"):
        parse("full").with_budget(5)
    assert str(parse("knorm(sinks=2)").with_budget(77)) == "knorm(budget=77, sinks=2)"


def test_the_default_grows_with_the_window() -> None:
    spec = tiny.load("llama").spec
    budgets = [default(dataclasses.replace(spec, max_positions=n)).policy.budget for n in (512, 8192, 131072, 10**6)]
    assert budgets == [256, 1024, 16384, 16384]


@given(budget=st.integers(1, 5000), questions=st.integers(1, 3))
def test_the_default_fits_any_budget(budget: int, questions: int) -> None:
    keep = default(_SPEC, questions=questions, budget=budget).policy
    assert keep.budget == budget
    assert keep.name == ("snapkv" if questions == 1 else "keydiff")


@pytest.mark.parametrize("axis", registry.KINDS)
def test_every_policy_is_one_documented_file(axis: registry.Axis) -> None:
    for name in registry.names(axis):
        cls = registry.lookup(axis, name)
        assert cls.name == name
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        assert len((cls.__doc__ or "").splitlines()[0]) > 20


def test_no_two_axes_have_a_name_in_common() -> None:
    names = [name for axis in registry.KINDS for name in registry.names(axis)]
    assert len(names) == len(set(names))
    assert all(name in registry.names(registry.axis_of(name)) for name in names)
    assert registry.axis_of("none") is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share(LayerSharing):
    name = "pairs"
    map: str = "0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sparse(SparsePrefill):
    name = "blocks"
    mass: float = 0.5


_TERMS = {"share": _Share, "sparse_prefill": _Sparse}


@given(order=st.permutations(["pairs(map=0_0)", "blocks(mass=1e+2)", "kivi(bits=2)"]))
def test_terms_stand_in_any_order_and_print_in_one(order: list[str]) -> None:
    lookup, names = registry.lookup, registry.names
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "names", lambda axis: [_TERMS[axis].name] if axis in _TERMS else names(axis))
        patch.setattr(registry, "lookup", lambda axis, name: _TERMS[axis] if axis in _TERMS else lookup(axis, name))
        for size in range(len(order) + 1):
            recipe = parse("+".join(["h2o(budget=9)", *order[:size]]))
            text = str(recipe)
            terms = re.findall("pairs|blocks|kivi", text)
            assert terms == [t for t in ("pairs", "blocks", "kivi") if t in "+".join(order[:size])]
            assert parse(text) == recipe
            assert recipe.reading == text.removesuffix("+kivi(bits=2)")
        with pytest.raises(UsageError, match="one "):
            parse("h2o+blocks+kivi+blocks(mass=2)")
        with pytest.raises(UsageError, match="begins with an eviction policy"):
            parse("blocks+h2o")


def test_without_them_terms_change_no_text() -> None:
    recipe = parse("h2o(budget=9)+kivi(bits=2)")
    assert (recipe.share, recipe.sparse_prefill) == (LayerSharing(), SparsePrefill())
    assert recipe == type(recipe)(recipe.policy, recipe.storage)


def test_names_need_no_torch() -> None:
    code = "import sys; from kvcli import registry; registry.names('eviction'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
