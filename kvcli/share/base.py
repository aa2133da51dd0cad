"""The interface of a layer sharing: which layers use the keys and values of another layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from kvcli.types import ModelSpec

if TYPE_CHECKING:
    from kvcli.storage.base import KeptUnits, KVStorage, StorageBytes, StoredLayer


@dataclass(frozen=True, kw_only=True)
class LayerSharing:
    """Shares the layers that the model itself shares. A frozen dataclass whose fields are its hyper-parameters.

    A layer that borrows stores no units. In prefill and in decoding, its queries attend to the kept units of the layer
    that it borrows from. Memory falls with the number of borrowing layers. Prefill depends on it, so it is a part of
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

    def leaders(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return per layer the layer that chooses which units it keeps: itself, or the lower layer of its pair.

        Both layers of a pair have their own units during prefill; :meth:`join` stores them together.

        Raises:
            ModelError: as :meth:`for_model`.
        """
        return tuple(range(spec.layers))

    def join(self, lower: StoredLayer, upper: KeptUnits, storage: KVStorage) -> tuple[StoredLayer, StoredLayer]:  # noqa: ARG002
        """Store two layers with the same units together; ``lower`` has its keys and values unchanged."""
        raise TypeError(f"'{self.name}' has no pairs of layers")

    def pair_size(self, spec: ModelSpec, layer: int, units: int, storage: KVStorage) -> StorageBytes:  # noqa: ARG002
        """Return the bytes of a pair whose lower layer is ``layer``; ``spec`` has the sizes of that layer."""
        raise TypeError(f"'{self.name}' has no pairs of layers")

    def join_peak_nbytes(self, spec: ModelSpec, units: int) -> int:  # noqa: ARG002
        """Return the temporary bytes of :meth:`join`."""
        return 0
