"""The interface of a fold: what a small state remembers of evicted KV pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from kvcli.types import ModelSpec, Rotary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX = "fold."
"""Names of tensors in a layer's running statistics that belong to a fold."""


class Folding(Protocol):
    """A fold with everything that it needs of a model."""

    def take(self, layer: int, state: dict[str, Tensor], k: Tensor, v: Tensor, pos: Tensor) -> None:
        """Add evicted units to a layer's state.

        Args:
            layer: index of the layer.
            state: its running statistics. Entries that begin with :data:`PREFIX` are replaced, never written to.
            k: ``[H_kv, n, D]`` before RoPE.
            v: ``[H_kv, n, D]``.
            pos: ``[H_kv, n]`` int32, positions in the document.
        """
        ...

    def recall(self, layer: int, state: dict[str, Tensor], q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Estimate the attention of ``q [H, m, D]`` before RoPE to everything in a state.

        Returns:
            ``(o [H, m, D] in q's dtype, lse [H, m] float32)``, a term to be merged with that of the kept units.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Forgets what is evicted. A frozen dataclass whose fields are its hyper-parameters.

    A fold adds evicted units to a state of constant size per KV head. In prefill and in decoding, the state adds to the
    numerator and denominator of attention. Layers with a sliding window have none. While nothing is evicted it changes
    nothing. Prefill depends on it, so it is a part of :attr:`kvcli.recipe.Recipe.reading`.
    """

    name: ClassVar[str] = "none"
    """The fold's name in recipes, equal to its module's name; ``none`` for this one, which no recipe writes."""

    def for_model(self, spec: ModelSpec) -> Self:  # noqa: ARG002
        """Return the fold with everything that depends on the model.

        Raises:
            ModelError: it must be trained for the model and is not.
        """
        return self

    def open(self, spec: ModelSpec, device: torch.device, rotary: Rotary) -> Folding | None:  # noqa: ARG002
        """Prepare the fold for a model; ``None`` for the one that forgets. Raises as :meth:`for_model`."""
        return None

    def state_nbytes(self, spec: ModelSpec) -> int:  # noqa: ARG002
        """Return the bytes of one layer's state."""
        return 0

    def maps_nbytes(self, spec: ModelSpec) -> int:  # noqa: ARG002
        """Return the bytes of trained parameters for all layers."""
        return 0
