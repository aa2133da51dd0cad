"""Take RoPE out of the layers, so that the cache applies it.

The model's rotary module is replaced by the identity (cos = 1, sin = 0); queries and keys then reach the attention
function unrotated. The cache rotates them with the model's own module and its own function. How a layer uses both is
found by trial. The same tokens run with RoPE in and out, and the first way that turns one record into the other is
used. Partial rotary, interleaved pairs, scaled frequencies and bases per layer type therefore work as in the model.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvcli.errors import UnsupportedModel
from kvcli.models import trial
from kvcli.models.trial import Call

Angles = tuple[Tensor, ...]
"""cos and sin ``[·, n, rotary dim]``, or one complex tensor of both."""

Apply = Callable[..., Tensor]
"""Rotates ``[B, H, n, D]`` by angles."""

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class IdentityRotary(nn.Module):
    """A rotary module that does not rotate. Other attributes are those of the module that it replaces."""

    def __init__(self, rotary: nn.Module, angles: dict[str | None, Angles]) -> None:
        super().__init__()
        self.rotary, self.angles = rotary, angles

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | Angles:
        """cos = 1 and sin = 0 for any position: ``[1, 1, rotary dim]`` each, to broadcast."""
        kind = kwargs.get("layer_type") or next((a for a in args if isinstance(a, str)), None)
        first, *others = self.angles[kind]
        made = torch.ones(1, 1, first.shape[-1], dtype=first.dtype, device=x.device)
        return (made, *(torch.zeros_like(made) for _ in others)) if others else made

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("rotary"), name)


class ModelRotary:
    """A model's rotary embedding, called from outside. Implements :class:`kvcli.types.Rotary`.

    Args:
        rotary: the model's rotary module; ``None`` if it has none.
        apply: rotates ``[B, H, n, D]`` by angles as the model's layers do.
        types: per layer, the ``layer_type`` argument the rotary module wants, or ``None`` if it takes none.
        rotated: per layer, whether the layer rotates at all (SmolLM3 has layers that do not).
    """

    def __init__(
        self, rotary: nn.Module | None, apply: Apply, types: Sequence[str | None], rotated: Sequence[bool]
    ) -> None:
        self.rotary, self.apply, self.types, self.rotated = rotary, apply, list(types), list(rotated)
        self.horizon = 1
        self._settled = None if rotary is None else inspect.unwrap(type(rotary).forward)
        self._tables: dict[tuple[str | None, torch.dtype, torch.device], Angles] = {}
        self._length = 1  # positions that tables were reserved for

    @property
    def length_dependent(self) -> bool:
        """Whether frequencies depend on the number of positions (longrope, dynamic NTK)."""
        kinds = getattr(self.rotary, "rope_type", "default")
        named = kinds.values() if isinstance(kinds, dict) else [kinds]
        return any("dynamic" in str(kind) or kind == "longrope" for kind in named)

    def fix_length(self, horizon: int) -> None:
        """Fix the number of positions of this run.

        Length-dependent frequencies (longrope, dynamic NTK) are chosen for this length once, so that keys rotated
        early and late agree.
        """
        if horizon != self.horizon:
            self.horizon = horizon
            self._tables.clear()

    def rotate(self, layer: int, x: Tensor, positions: range | Tensor) -> Tensor:
        """See :class:`kvcli.types.Rotary`."""
        if not self.rotated[layer] or x.shape[1] == 0:
            return x.clone()
        if isinstance(positions, range):  # [1, H, n, D] with one row of angles for all heads
            return self.apply(x[None], *self._table(self.types[layer], positions, x))[0]
        if positions.dim() == 1:
            table = self._table(self.types[layer], range(self._length), x)
            angles = [t.index_select(1, positions) for t in table]
            return self.apply(x[None], *angles)[0]
        own = self._angles(self.types[layer], positions, x)
        return self.apply(x[:, None], *own)[:, 0]  # heads as a batch, each its own angles

    def angles(self, layer: int, x: Tensor, positions: int) -> tuple[Tensor, Tensor] | None:
        """See :class:`kvcli.types.Rotary`. Verified numerically; never inferred from the config."""
        if not self.rotated[layer]:
            return None
        table = self._table(self.types[layer], range(positions), x)
        if len(table) != 2 or table[0].shape[2] != x.shape[2]:
            return None
        cos, sin = table[0][0], table[1][0]
        some, n = x.new_ones(1, 1, x.shape[2]).cumsum(-1) / x.shape[2], min(positions, 8)
        some = some.expand(1, n, -1).contiguous()
        half = x.shape[2] // 2
        turned = torch.cat([-some[..., half:], some[..., :half]], dim=-1)
        alike = torch.allclose(some * cos[:n] + turned * sin[:n], self.rotate(layer, some, range(n)), atol=1e-2)
        return (cos, sin) if alike else None

    def reserve(self, layer: int, x: Tensor, positions: int) -> None:
        """See :class:`kvcli.types.Rotary`."""
        self._length = max(self._length, positions)
        if self.rotated[layer]:
            self._table(self.types[layer], range(positions), x)

    def _table(self, kind: str | None, positions: range, x: Tensor) -> Angles:
        key = kind, x.dtype, x.device
        found = self._tables.get(key, ())
        known = found[0].shape[1] if found else 0
        if positions.stop > known:
            length = max(positions.stop, 2 * known, 1024)
            found = self._tables[key] = self._angles(kind, torch.arange(length, device=x.device)[None], x)
        return tuple(t[:, positions.start : positions.stop] for t in found)

    def _angles(self, kind: str | None, positions: Tensor, x: Tensor) -> Angles:
        """Angles of positions ``[·, n]``.

        The module is called with the last planned position first, which fixes length-dependent frequencies; its
        unwrapped forward then uses them unchanged. It is on one device; layers may be on several.
        """
        assert self.rotary is not None
        assert self._settled is not None
        on, home = x.device, next((buffer.device for buffer in self.rotary.buffers()), x.device)
        if on != home:
            x, positions = x[:, :1].to(home), positions.to(home)
        extra = {} if kind is None else {"layer_type": kind}
        self.rotary(x, positions.new_tensor([[self.horizon - 1]]), **extra)
        return tuple(t.to(on) for t in _as_tuple(self._settled(self.rotary, x, positions, **extra)))


def detach_rope(
    model: PreTrainedModel, rotated: trial.Trial, again: Callable[[], trial.Trial]
) -> tuple[ModelRotary, Callable[[bool], None], trial.Trial]:
    """Find out how a model's layers rotate, and wrap its rotary module for the cache.

    Args:
        model: the causal language model.
        rotated: a trial with RoPE in.
        again: runs the same trial again.

    Returns:
        the rotary; a switch: ``switch(True)`` takes RoPE out of the layers, ``switch(False)`` puts it back; and the
        trial with RoPE out.

    Raises:
        UnsupportedModel: several rotary modules, or a layer that rotates in no way that is known; names it.
    """
    if len(rotated.rotaries) > 1:
        raise UnsupportedModel(
            f"{type(model).__name__}: expected one rotary module shared by all layers, found {len(rotated.rotaries)}"
            f" ({', '.join(list(rotated.rotaries)[:4])})"
        )
    calls = rotated.calls
    if not rotated.rotaries:
        none = ModelRotary(None, lambda x: x, [None] * len(calls), [False] * len(calls))
        return none, lambda _out: None, again()
    name, rotary = next(iter(rotated.rotaries.items()))
    parent, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    kinds = _kinds(model, rotary, calls)
    x = calls[0].q[None, :, :1]
    first = x.new_zeros(1, 1, dtype=torch.long)
    templates = {kind: _as_tuple(rotary(x, first, **({"layer_type": kind} if kind else {}))) for kind in set(kinds)}
    identity = IdentityRotary(rotary, templates)

    def switch(out: bool) -> None:
        setattr(parent, attribute, identity if out else rotary)

    switch(True)
    try:
        plain = again()
    finally:
        switch(False)
    still = [alike(a.q, b.q) and alike(a.k, b.k) for a, b in zip(calls, plain.calls, strict=True)]
    found = ModelRotary(rotary, lambda y, *_: y, kinds, [not same for same in still])
    found.fix_length(trial.START + trial.TOKENS)
    if not all(still):
        found.apply = _find_apply(model, found, calls, plain.calls)
    return found, switch, plain


def _find_apply(model: PreTrainedModel, rotary: ModelRotary, calls: Sequence[Call], plain: Sequence[Call]) -> Apply:
    """The first way to rotate that turns the queries and keys of one trial into those of the other."""
    at = range(trial.START, trial.START + trial.TOKENS)
    failed = ""
    for apply in _ways(calls):
        rotary.apply = apply
        for i, (a, b) in enumerate(zip(calls, plain, strict=True)):
            try:
                same = all(alike(u, rotary.rotate(i, w, at)) for u, w in ((a.q, b.q), (a.k, b.k)))
            except (RuntimeError, TypeError, ValueError, IndexError):
                same = False
            if not same:
                failed = failed or f"{a.name} ({type(a.module).__name__})"
                break
        else:
            return apply
    raise UnsupportedModel(
        f"{type(model).__name__}: {failed} changes queries and keys by their position in a way that kvcli does not know"
    )


def _ways(calls: Sequence[Call]) -> Iterator[Apply]:
    """The functions beside the attention classes that apply RoPE, to all dimensions of a head or some; then halves."""
    functions: list[Callable[..., Any]] = []
    for home in dict.fromkeys(type(call.module).__module__ for call in calls):
        found = vars(sys.modules[home])
        functions += [f for n, f in found.items() if callable(f) and n.startswith("apply_") and "rotary" in n]
    for function in (*dict.fromkeys(functions), _rotate_halves):
        for part in ("all", "first", "last"):
            for key_heads in (0, 1, None):
                for heads_first in (True, False):
                    yield _Way(function, part, key_heads, heads_first)


class _Way:
    """One way to rotate ``[B, H, n, D]``.

    Args:
        function: a model's own, of queries and keys or of one tensor.
        part: ``all`` dimensions of a head, or the ``first`` or ``last`` that have angles.
        key_heads: heads of keys that the function gets beside ``x``; ``None`` if it takes one tensor. Some functions
            fail without any.
        heads_first: whether it takes ``[B, H, n, D]``, or ``[B, n, H, D]``.
    """

    def __init__(self, function: Callable[..., Any], part: str, key_heads: int | None, heads_first: bool) -> None:
        self.function, self.part, self.key_heads, self.heads_first = function, part, key_heads, heads_first

    def __call__(self, x: Tensor, *angles: Tensor) -> Tensor:
        width = angles[0].shape[-1] * (2 if angles[0].is_complex() else 1)
        if self.part == "all":
            return self._rotate(x, angles)
        if width >= x.shape[-1]:
            raise ValueError("the angles are as wide as a head")
        if self.part == "first":
            return torch.cat([self._rotate(x[..., :width], angles), x[..., width:]], dim=-1)
        return torch.cat([x[..., :-width], self._rotate(x[..., -width:], angles)], dim=-1)

    def _rotate(self, x: Tensor, angles: Angles) -> Tensor:
        if not self.heads_first:
            x = x.transpose(1, 2)
        if self.key_heads is None:
            out = self.function(x, *angles)
        else:
            out = self.function(x, x.narrow(1 if self.heads_first else 2, 0, self.key_heads), *angles)[0]
        return out if self.heads_first else out.transpose(1, 2)  # type: ignore[no-any-return]


def _rotate_halves(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos[:, None], sin[:, None]
    first, second = q.chunk(2, dim=-1)
    return q * cos + torch.cat([-second, first], dim=-1) * sin, k


def _kinds(model: PreTrainedModel, rotary: nn.Module, calls: Sequence[Call]) -> list[str | None]:
    """Per call the ``layer_type`` that the rotary module is asked for: the layer's own, or the configuration's."""
    if "layer_type" not in inspect.signature(rotary.forward).parameters:
        return [None] * len(calls)
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None) or []

    def kind(call: Call) -> str:
        for name in ("layer_type", "attention_type"):
            if isinstance(found := getattr(call.module, name, None), str):
                return found
        index = getattr(call.module, "layer_idx", None)
        if isinstance(index, int) and index < len(types):
            return str(types[index])
        raise UnsupportedModel(f"{type(model).__name__}: nothing says the layer type of {call.name}")

    return [kind(call) for call in calls]


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for the rounding of their dtype."""
    tolerance, a, b = _TOLERANCE[a.dtype], a.float(), b.float()
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * float(b.norm())


def _as_tuple(angles: Any) -> Angles:
    return (angles,) if isinstance(angles, Tensor) else tuple(angles)
