"""The interface of a layer sharing: which layers use the keys and values of another layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LayerSharing:
    """Shares the layers that the model itself shares. A frozen dataclass whose fields are its hyper-parameters.

    A layer that borrows stores no units: its queries attend to the kept units of the layer that it borrows from, in
    prefill and in decoding. Memory falls with the number of borrowing layers. Prefill depends on it, so it is a part of
    :attr:`kvcli.recipe.Recipe.reading`.
    """

    name: ClassVar[str] = "none"
    """The sharing's name in recipes, equal to its module's name; ``none`` for this one, which no recipe writes."""

    def for_model(self, spec: ModelSpec) -> Self:  # noqa: ARG002
        """Return the sharing with everything that depends on the model.

        Raises:
            ModelError: the model cannot share so, or a calibration is missing.
        """
        return self

    def owners(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return per layer the layer whose units it uses: itself, or a lower layer that uses its own.

        Raises:
            ModelError: as :meth:`for_model`.
        """
        return spec.owners or tuple(range(spec.layers))
