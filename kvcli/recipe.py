"""Recipes: one string names an eviction policy, and at most one term of each other axis: ``keydiff(budget=1024)``,
``full``, ``locret(budget=16384)+kivi(bits=4)``.

Grammar: ``policy[(field=value, …)][+term[(field=value, …)]]…``, terms in any order; a term's name says its axis
(:data:`kvcli.registry.Axis`). The canonical form has the order of the axes. It always prints the budget, and omits
other fields with default values, terms that do nothing, and ``dense`` storage.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcli import registry  # as a module: tests replace parts of it
from kvcli.errors import ModelError, UsageError
from kvcli.fold.base import Fold
from kvcli.share.base import LayerSharing
from kvcli.sparse_prefill.base import SparsePrefill

if TYPE_CHECKING:
    from kvcli.eviction.base import EvictionPolicy
    from kvcli.storage.base import KVStorage
    from kvcli.types import ModelSpec

_TERM = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\(([^()]*)\))?\s*")
_PLUS = re.compile(r"\+(?![^()]*\))")  # outside parentheses
_OMITTED = ("dense", "none")

KV_BITS = {16: "dense", 8: "int8", 4: "kivi(bits=4)", 2: "kivi(bits=2)"}
"""The storage that ``--kv-bits`` stands for; ``kvcli plan`` and run reports count the scales too."""


@dataclass(frozen=True)
class Recipe:
    """One term per axis; those with a default change nothing unless they are given.

    Attributes:
        policy: which units survive.
        storage: how survivors are stored and attended.
        share: which layers use the units of another layer.
        fold: what is remembered of evicted units.
        sparse_prefill: which units a chunk attends to.
    """

    policy: EvictionPolicy
    storage: KVStorage
    share: LayerSharing = field(default_factory=LayerSharing)
    fold: Fold = field(default_factory=Fold)
    sparse_prefill: SparsePrefill = field(default_factory=SparsePrefill)

    def __post_init__(self) -> None:
        if self.storage.limit is not None and self.policy.budget is not None:
            raise UsageError(
                f"{self.storage.name} with a limit evicts KV pairs, and so does {self.policy.name}",
                f"full+{format_policy(self.storage)}",
            )
        if self.storage.row_codec is not None and self.policy.changes_units:
            name = self.policy.name if self.policy.victims == "drop" else f"victims={self.policy.victims}"
            raise UsageError(
                f"{name} changes kept KV pairs, and {format_policy(self.storage)} encodes each of them only once",
                f"{self.storage.name} without fill=true",
            )

        if self.storage.row_codec is not None and self.sparse_prefill.name != "none":
            raise UsageError(
                f"{self.sparse_prefill.name} chooses among exact keys, and {format_policy(self.storage)} encodes them"
                " during prefill",
                f"{self.storage.name} without fill=true",
            )

        if self.share.name == "minicache":
            self._check_pairs()

        if self.fold.name != "none":
            self._check_fold()

    def _check_pairs(self) -> None:
        policy, storage = self.policy, format_policy(self.storage)
        changing = policy.name if policy.victims == "drop" else f"victims={policy.victims}"
        if policy.changes_units:
            raise UsageError(
                f"'+{self.share.name}' lets two layers keep the same KV pairs, and {changing} gives evicted ones to"
                " kept ones of one layer",
                f"without +{self.share.name}",
            )
        if self.storage.name not in ("dense", "int8", "kivi", "turbo") or self.storage.row_codec is not None:
            raise UsageError(
                f"'+{self.share.name}' stores what two layers have in common, and {storage} stores one layer",
                f"+{self.share.name}, or with +kivi, +int8 or +turbo(bits=4)",
            )

    def _check_fold(self) -> None:
        policy = self.policy
        changing = policy.name if policy.victims == "drop" else f"victims={policy.victims}"
        reasons = {
            f"{changing} gives evicted KV pairs to kept ones": policy.changes_units,
            f"layers share keys in {self.share.name}": self.share.name != "none",
            f"{policy.name} evicts once more when the text is read": policy.allots,
            f"{self.sparse_prefill.name} has no sum of weights to add to": self.sparse_prefill.name != "none",
        }
        for reason in (text for text, holds in reasons.items() if holds):
            raise UsageError(
                f"'+{self.fold.name}' adds evicted KV pairs to attention, but {reason}", f"without +{self.fold.name}"
            )

    def __str__(self) -> str:
        return _join(self.policy, self.share, self.fold, self.sparse_prefill, self.storage)

    def with_budget(self, budget: int) -> Recipe:
        """Return the recipe with another budget.

        Raises:
            UsageError: the policy has no budget, or the budget is too small for its other fields.
        """
        if self.policy.budget is None:
            raise UsageError(f"'{self}' keeps every KV pair and takes no budget", "--policy keydiff --budget N")
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, budget=budget))

    def for_model(self, spec: ModelSpec) -> Recipe:
        """Return the recipe with everything that depends on the model, so that :attr:`reading` says all.

        Raises:
            ModelError: the model cannot run the recipe, or a calibration is missing.
        """
        if spec.passes:
            self._check_passes(spec)
        own = {name: getattr(self, name).for_model(spec) for name in ("share", "fold", "sparse_prefill")}
        return dataclasses.replace(self, **own)

    def _check_passes(self, spec: ModelSpec) -> None:
        whole = self.storage.offloads or self.storage.row_codec is not None
        refused = {
            format_policy(self.share): self.share.name != "none",
            format_policy(self.fold): self.fold.name != "none",
            format_policy(self.storage): whole,
        }
        for term in (text for text, holds in refused.items() if holds):
            raise ModelError(
                f"{spec.name} is a Layer-Condensed model, whose layers use the keys of a higher layer, and"
                f" +{term} needs each layer's keys at once",
                "a policy alone, or with +int8, +kivi or +turbo",
            )

    @property
    def reading(self) -> str:
        """The part of the recipe that determines the prefill: two recipes with equal parts can share a saved prefill.

        It is the whole recipe if the storage affects prefill. Any other storage is chosen afterwards.
        """
        if self.storage.affects_prefill:
            return str(self)
        return _join(self.policy, self.share, self.fold, self.sparse_prefill)

    def units(self, layer: int, layers: int, *, final: bool = False) -> int | None:
        """Return the units per KV head that one of ``layers`` layers keeps, without the protected tail; ``None`` for
        all. ``final``: after the policy has divided its budget anew."""
        if self.storage.limit is not None:
            return self.storage.limit
        return self.policy.final_units(layer, layers) if final else self.policy.units(layer, layers)

    def with_bits(self, bits: int) -> Recipe:
        """Return the recipe with units stored in ``bits`` bits.

        Raises:
            UsageError: no storage has so many bits, or the recipe names another storage.
        """
        if bits not in KV_BITS:
            raise UsageError(f"--kv-bits {bits}: expected one of {', '.join(map(str, KV_BITS))}", "--kv-bits 4")
        storage = _parse_term("storage", KV_BITS[bits], KV_BITS[bits])
        if self.storage.name != "dense" and self.storage != storage:
            raise UsageError(
                f"--kv-bits {bits} means {KV_BITS[bits]}, and '{self}' stores {format_policy(self.storage)}",
                "leave out --kv-bits, or the + part of the recipe",
            )
        return dataclasses.replace(self, storage=storage)


def parse(text: str) -> Recipe:
    """Parse a recipe string.

    Raises:
        UsageError: unknown or impossible terms, unknown field, wrong type of value, or broken syntax.
    """
    first, *others = _PLUS.split(text)
    name, _ = _split(first, text)
    axis = registry.axis_of(name)
    if axis not in (None, "eviction"):
        raise UsageError(
            f"'{name}' is a {registry.KINDS[axis]}, and a recipe begins with an eviction policy", f"full+{text.strip()}"
        )
    terms: dict[registry.Axis, Any] = {}
    for other in others:
        name, _ = _split(other, text)
        axis = registry.axis_of(name)
        if axis is None:
            known = ", ".join(n for a in registry.KINDS if a != "eviction" for n in registry.names(a))
            raise UsageError(f"unknown term '+{name}'; expected one of {known}", "kvcli recipes")
        if axis in terms or axis == "eviction":
            before = _split(first, text)[0] if axis == "eviction" else terms[axis].name
            raise UsageError(
                f"'{before}' and '{name}' in '{text.strip()}': a recipe takes one {registry.KINDS[axis]}",
                "kvcli recipes",
            )
        terms[axis] = _parse_term(axis, other, text)
    storage = terms.pop("storage", None) or _parse_term("storage", "dense", text)
    return Recipe(_parse_term("eviction", first, text), storage, **terms)


def default(
    spec: ModelSpec, *, questions: int = 1, budget: int | None = None, heads: bool = False, published: str = ""
) -> Recipe:
    """Return the default recipe: the best one measured for the case (docs/results).

    ``published``, the recipe of published heads, if there is one; ``locret`` if the model has other heads. Without
    heads ``snapkv`` for one question and ``keydiff`` for several, which share a prefill. The budget, unless
    given, is an eighth of the model's window, at most 16,384 units. The sinks cover the template's head; few
    stabilizers leave most of the budget to the scores.
    """
    if published:
        recipe = parse(published)
        if budget is None:
            return recipe
        fewer = min(recipe.policy.recent, budget // 4)
        return dataclasses.replace(recipe, policy=dataclasses.replace(recipe.policy, budget=budget, stabilizers=fewer))
    units = budget or max(256, min(16384, spec.max_positions // 8))
    protected = f", stabilizers={min(64, units // 8)}, sinks={min(48, units // 8)}" if units >= 8 else ""
    name = "locret" if heads else "snapkv" if questions == 1 else "keydiff"
    return parse(f"{name}(budget={units}{protected})")


def choose(
    spec: ModelSpec,
    named: Recipe | None,
    *,
    questions: int = 1,
    budget: int | None = None,
    bits: int | None = None,
    heads: bool = False,
    published: str = "",
) -> Recipe:
    """Return the recipe of a run: the ``named`` one or the :func:`default`, with budget and bits if given."""
    if named is None:
        recipe = default(spec, questions=questions, budget=budget, heads=heads, published=published)
    else:
        recipe = named if budget is None else named.with_budget(budget)
    return recipe if bits is None else recipe.with_bits(bits)


def format_policy(policy: EvictionPolicy | KVStorage | LayerSharing | Fold | SparsePrefill) -> str:
    """Format one term canonically, as :func:`parse` accepts it."""
    shown = [
        f"{f.name}={_print(getattr(policy, f.name))}"
        for f in dataclasses.fields(policy)
        if getattr(policy, f.name) is not None and (f.name == "budget" or getattr(policy, f.name) != f.default)
    ]
    return f"{policy.name}({', '.join(shown)})" if shown else policy.name


def _print(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _join(*terms: Any) -> str:
    return "+".join(text for text in map(format_policy, terms) if text not in _OMITTED)


def _split(text: str, whole: str) -> tuple[str, str]:
    """Return the name and the fields of a term."""
    match = _TERM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"cannot read the recipe '{whole}': expected name(field=value, …), got '{text.strip()}'", "kvcli recipes"
        )
    return match.group(1).lower().replace("-", "_"), match.group(2) or ""


def _parse_term(axis: registry.Axis, text: str, whole: str) -> Any:
    name, arguments = _split(text, whole)
    cls = registry.lookup(axis, name)
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls) if hints[f.name] is not types.NoneType}
    values: dict[str, Any] = {}
    for item in filter(str.strip, arguments.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"cannot read '{item.strip()}' in '{whole}': expected field=value", "kvcli recipes")
        if key not in fields:
            raise UsageError(f"{name} has no field '{key}'; it has: {', '.join(fields) or 'none'}", "kvcli recipes")
        if key in values:
            raise UsageError(f"the field '{key}' is given twice in '{whole}'")
        values[key] = _convert(value, fields[key], name, key)
    return cls(**values)


def _convert(text: str, kind: Any, name: str, key: str) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            if text in typing.get_args(option):
                return text
        elif option is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif option is not types.NoneType:
            try:
                return option(text.replace("_", "")) if option in (int, float) else option(text)
            except ValueError:
                continue
    expected = " or ".join(_describe(o) for o in options if o is not types.NoneType)
    raise UsageError(f"{name}({key}={text}): {key} must be {expected}")


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"'{choice}'" for choice in typing.get_args(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))
