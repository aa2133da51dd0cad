"""Quest: pages selected by an upper bound on their logits (Tang et al. 2024, arXiv 2406.10774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.storage.base import KeptUnits, KVStorage, StorageBytes, StoredLayer
from kvcli.storage.offload.checks import at_least
from kvcli.storage.offload.landmark import Landmarks
from kvcli.storage.offload.layer import Selection, footprint, keep_on_device, offload

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Quest(KVStorage):
    """Keeps all units in host memory and attends to the pages with the largest bound on their logits.

    Args:
        page: units per page.
        pages: pages that each step attends to.
        dense: first layers, which stay dense on the device.
    """

    page: int = 16
    pages: int = 64
    dense: int = 2

    name: ClassVar[str] = "quest"
    offloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, page=1, pages=1, dense=0)

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Count minimum and maximum of each channel, staging, and the last page."""
        if self._stays_on_device(layer, units):
            return super().size(spec, layer, units)
        n = units // self.page
        staged = self.page * self.pages
        return footprint(spec, units, index=2 * n * spec.head_dim, staged=staged, exact=units % self.page)

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Offload the units; minimum and maximum of each channel per page become the index."""
        import torch

        if kept.window is not None or self._stays_on_device(kept.layer, kept.k.shape[1]):
            return keep_on_device(kept)

        def index(keys: Tensor) -> Bounds:
            return Bounds(Landmarks(torch.cat([keys.amax(2), keys.amin(2)], dim=-1), self.pages))

        return offload(kept, index, block=self.page)

    def _stays_on_device(self, layer: int, units: int) -> bool:
        return layer < self.dense or units <= self.page * self.pages


@dataclass(frozen=True)
class Bounds:
    """Landmarks ``[max ‖ min]``: with queries ``[q⁺ ‖ q⁻]`` their product is the bound ``Σ max(q·max, q·min)``."""

    pages: Landmarks

    @property
    def nbytes(self) -> int:
        """Bytes of two vectors per page."""
        return self.pages.nbytes

    @property
    def max_blocks(self) -> int:
        return self.pages.max_blocks

    def select(self, q: Tensor, scale: float) -> Selection:
        """See :class:`kvcli.storage.offload.layer.Index`."""
        import torch

        return self.pages.select(torch.cat([q.clamp(min=0), q.clamp(max=0)], dim=-1), scale)
