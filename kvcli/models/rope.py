"""Take RoPE out of the layers, so that the cache applies it.

The model's rotary module is replaced by the identity (cos = 1, sin = 0); queries and keys then reach the attention
function unrotated. The cache rotates them with the model's own module and its own ``apply_rotary_pos_emb``. Partial
rotary, interleaved pairs, scaled frequencies and bases per layer type therefore work as in the model; the self-test
would show a mistake.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kvcli.errors import UnsupportedModel


class IdentityRotary(nn.Module):
    """A rotary module that does not rotate."""

    def __init__(self, rotary: nn.Module, dim: int) -> None:
        super().__init__()
        self.rotary, self.dim = rotary, dim

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """cos = 1 and sin = 0 for any position: ``[1, 1, rotary dim]`` each, to broadcast."""
        return x.new_ones(1, 1, self.dim), x.new_zeros(1, 1, self.dim)


class ModelRotary:
    """A model's rotary embedding, called from outside. Implements :class:`kvcli.types.Rotary`.

    Args:
        rotary: the model's rotary module.
        apply: the model's ``apply_rotary_pos_emb``.
        types: per layer, the ``layer_type`` argument the rotary module wants, or ``None`` if it takes none.
        rotated: per layer, whether the layer rotates at all (SmolLM3 has layers that do not).
    """

    def __init__(
        self,
        rotary: nn.Module,
        apply: Callable[..., tuple[Tensor, Tensor]],
        types: list[str | None],
        rotated: list[bool],
    ) -> None:
        self.rotary, self.apply, self.types, self.rotated = rotary, apply, types, rotated
        self.horizon = 1
        self._settled = inspect.unwrap(type(rotary).forward)
        self._tables: dict[tuple[str | None, torch.dtype], tuple[Tensor, Tensor]] = {}

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
            cos, sin = self._table(self.types[layer], positions, x)
            return self.apply(x[None], x[None, :0], cos, sin)[0][0]
        if positions.dim() == 1:
            cos, sin = (t.index_select(1, positions) for t in self._tables[self.types[layer], x.dtype])
            return self.apply(x[None], x[None, :0], cos, sin)[0][0]
        cos, sin = self._angles(self.types[layer], positions, x)
        return self.apply(x[:, None], x[:, None][:, :0], cos, sin)[0][:, 0]  # heads as a batch, each its own angles

    def angles(self, layer: int, x: Tensor, positions: int) -> tuple[Tensor, Tensor] | None:
        """See :class:`kvcli.types.Rotary`. Verified numerically; never inferred from the config."""
        if not self.rotated[layer]:
            return None
        cos, sin = (table[0] for table in self._table(self.types[layer], range(positions), x))
        if cos.shape[1] != x.shape[2]:
            return None
        some, n = x.new_ones(1, 1, x.shape[2]).cumsum(-1) / x.shape[2], min(positions, 8)
        some = some.expand(1, n, -1).contiguous()
        half = x.shape[2] // 2
        turned = torch.cat([-some[..., half:], some[..., :half]], dim=-1)
        alike = torch.allclose(some * cos[:n] + turned * sin[:n], self.rotate(layer, some, range(n)), atol=1e-2)
        return (cos, sin) if alike else None

    def reserve(self, layer: int, x: Tensor, positions: int) -> None:
        """See :class:`kvcli.types.Rotary`."""
        self._table(self.types[layer], range(positions), x)

    def _table(self, kind: str | None, positions: range, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._tables.get((kind, x.dtype), (x.new_empty(1, 0, 0), x.new_empty(1, 0, 0)))
        if positions.stop > cos.shape[1]:
            length = max(positions.stop, 2 * cos.shape[1], 1024)
            cos, sin = self._angles(kind, torch.arange(length, device=x.device)[None], x)
            self._tables[kind, x.dtype] = cos, sin
        return cos[:, positions.start : positions.stop], sin[:, positions.start : positions.stop]

    def _angles(self, kind: str | None, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin ``[·, n, rotary dim]``.

        The module is called with the last planned position first, which fixes length-dependent frequencies; its
        unwrapped forward then uses them unchanged.
        """
        extra = {} if kind is None else {"layer_type": kind}
        self.rotary(x, positions.new_tensor([[self.horizon - 1]]), **extra)
        angles: tuple[Tensor, Tensor] = self._settled(self.rotary, x, positions, **extra)
        return angles


def detach_rope(model: nn.Module, attentions: list[nn.Module]) -> tuple[ModelRotary, Callable[[bool], None]]:
    """Find a model's rotary module, and wrap it for the cache.

    Args:
        model: the causal language model.
        attentions: its attention modules in layer order.

    Returns:
        the rotary, and a switch: ``switch(True)`` takes RoPE out of the layers, ``switch(False)`` puts it back.

    Raises:
        UnsupportedModel: no rotary module, several, or no ``apply_rotary_pos_emb`` beside the attention class.
    """
    found = [(name, module) for name, module in model.named_modules() if name.split(".")[-1] == "rotary_emb"]
    if len(found) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__}: expected one rotary module shared by all layers, found {len(found)}"
            f" ({', '.join(name for name, _ in found[:4]) or 'none'})"
        )
    name, rotary = found[0]
    parent = model.get_submodule(name.rpartition(".")[0])
    applies = {getattr(sys.modules[type(a).__module__], "apply_rotary_pos_emb", None) for a in attentions}
    if len(applies) != 1 or None in applies:
        raise UnsupportedModel(f"{type(attentions[0]).__name__}: no apply_rotary_pos_emb beside the attention class")

    kinds: list[str | None] = [None] * len(attentions)
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        kinds = [str(a.layer_type) for a in attentions]
    rotated = [bool(getattr(a, "use_rope", True)) for a in attentions]
    sample = next(model.parameters())
    probe = torch.zeros(1, 1, dtype=torch.long, device=sample.device)
    cos, _ = rotary(sample, probe, **({} if kinds[0] is None else {"layer_type": kinds[0]}))
    unrotated = IdentityRotary(rotary, cos.shape[-1])

    def switch(out: bool) -> None:
        parent.rotary_emb = unrotated if out else rotary

    return ModelRotary(rotary, applies.pop(), kinds, rotated), switch  # type: ignore[arg-type]
