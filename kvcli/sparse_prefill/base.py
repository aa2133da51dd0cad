"""The interface of a sparse prefill: which keys a chunk's queries attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from kvcli.types import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SparsePrefill:
    """Attends to everything. A frozen dataclass whose fields are its hyper-parameters.

    A sparse prefill computes less of the attention between a chunk and the kept units. It changes the speed of prefill
    and neither memory nor decoding. Kept units depend on it, so it is a part of :attr:`kvcli.recipe.Recipe.reading`.
    """

    name: ClassVar[str] = "none"
    """Its name in recipes, equal to its module's name; ``none`` for this one, which no recipe writes."""

    def for_model(self, spec: ModelSpec) -> Self:  # noqa: ARG002
        """Return the sparse prefill with everything that depends on the model.

        Raises:
            ModelError: a calibration is missing.
        """
        return self

    def open(self, spec: ModelSpec) -> ChunkAttention | None:  # noqa: ARG002
        """Prepare it for a model; ``None`` for the one that attends to everything. Raises as :meth:`for_model`."""
        return None

    def work_nbytes(self, spec: ModelSpec, units: int, chunk: int) -> int:  # noqa: ARG002
        """Return the temporary bytes beside dense attention's, for a chunk whose last query sees ``units``."""
        return 0


class ChunkAttention(Protocol):
    """What a chunk attends to, in layers without window and attention sinks."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend causally.

        Args:
            layer: its index.
            q: ``[H, m, D]``, rotated queries of the last ``m`` keys.
            k: ``[H_kv, n, D]``, rotated keys of kept units and the chunk.
            v: ``[H_kv, n, D]``.
            scale: factor on the logits.

        Returns:
            ``[H, m, D]``.
        """
        ...
