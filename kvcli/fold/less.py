"""LESS (Dong et al. 2024, arXiv 2402.09398): evicted KV pairs in a linear-attention state with trained feature maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from kvcli.errors import ModelError, UsageError
from kvcli.fold import maps
from kvcli.fold.base import PREFIX, Fold
from kvcli.fold.maps import RANK
from kvcli.types import ModelSpec, Rotary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_VALUES, _MASS = f"{PREFIX}values", f"{PREFIX}mass"
_FLOOR = 1e-6  # least sum of weights, as published


@dataclass(frozen=True, kw_only=True)
class Less(Fold):
    """Evicted KV pairs are added to a linear-attention state of 8 rows per head, with trained feature maps.

    LESS (Dong et al. 2024, arXiv 2402.09398): for an evicted key and value ``H += φ(k)ᵀ v`` and ``z += φ(k)``. A query
    adds ``ψ(q) H`` to the numerator and ``ψ(q) z`` to the denominator of its attention to the kept units.
    ``kvcli train --fold less TEXT…`` trains ``φ`` and ``ψ`` for a model and an eviction policy.

    Differences: the maps take queries and keys before RoPE, because evictions move kept units to other slots. Keys have
    one map per KV head, queries one per query head. Units are folded chunk by chunk, already during prefill.

    Args:
        maps: digest of the trained maps. By default those of the model.
    """

    name = "less"
    maps: str = ""

    def __post_init__(self) -> None:
        if self.maps and len(self.maps) != maps.DIGEST:
            raise UsageError(f"less: maps must be a digest of {maps.DIGEST} characters, got '{self.maps}'", "less")

    def for_model(self, spec: ModelSpec) -> Self:
        """See :class:`kvcli.fold.base.Fold`."""
        found = maps.digest(spec)
        if self.maps and self.maps != found:
            raise ModelError(
                f"the trained maps of {spec.name} are {found}, and the recipe says {self.maps}", "+less, without maps"
            )
        return replace(self, maps=found)

    def open(self, spec: ModelSpec, device: torch.device, rotary: Rotary | None = None) -> LessMaps:  # noqa: ARG002
        """See :class:`kvcli.fold.base.Fold`."""
        self.for_model(spec)
        tensors = maps.load(spec)
        return LessMaps([{name: x.to(device).float() for name, x in layer.items()} for layer in tensors])

    def state_nbytes(self, spec: ModelSpec) -> int:
        """Count the values and the sums of weights, in float32."""
        return 4 * spec.kv_heads * RANK * (spec.head_dim + 1)

    def maps_nbytes(self, spec: ModelSpec) -> int:
        """Count the maps in float32."""
        return 4 * sum(
            sum(a * b * c for a, b, c in maps.shapes(spec.of_layer(layer)).values()) for layer in range(spec.layers)
        )


@dataclass(frozen=True)
class LessMaps:
    """Feature maps of a model; parameters per layer as in :func:`kvcli.fold.maps.shapes`, float32."""

    layers: list[dict[str, Tensor]]

    def keys(self, layer: int, k: Tensor) -> Tensor:
        """Compute ``φ(k)``: float32 ``[H_kv, n, RANK]``, none below zero."""
        from torch.nn.functional import gelu

        own = self.layers[layer]
        base = own["a"].abs() * gelu(gelu(k.float() @ own["w1"]) @ own["w2"])
        return (base + own["b"] * (base @ own["w3"])).abs()

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """Compute ``ψ(q)``: float32 ``[H, m, RANK]``, none below zero."""
        from torch.nn.functional import gelu

        own = self.layers[layer]
        return gelu(gelu(q.float() @ own["u1"]) @ own["u2"]).abs()

    def take(self, layer: int, state: dict[str, Tensor], k: Tensor, v: Tensor, pos: Tensor) -> None:  # noqa: ARG002
        """See :class:`kvcli.fold.base.Folding`."""
        phi = self.keys(layer, k)
        values, mass = phi.transpose(1, 2) @ v.float(), phi.sum(1)
        state[_VALUES] = values + state.get(_VALUES, 0.0)
        state[_MASS] = mass + state.get(_MASS, 0.0)

    def recall(self, layer: int, state: dict[str, Tensor], q: Tensor, scale: float) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See :class:`kvcli.fold.base.Folding`; the maps know the scale."""
        kv_heads, rank, dim = state[_VALUES].shape
        heads, m, _ = q.shape
        psi = self.queries(layer, q).view(kv_heads, heads // kv_heads * m, rank)
        mass = (psi @ state[_MASS].unsqueeze(2)).clamp_min(_FLOOR)
        o = psi @ state[_VALUES] / mass
        return o.to(q.dtype).view(heads, m, dim), mass.log().view(heads, m)
