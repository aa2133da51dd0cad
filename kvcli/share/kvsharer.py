"""KVSharer (Yang et al. 2024, arXiv 2410.18517): layers use the KV pairs of unlike layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from kvcli.errors import ModelError, UsageError
from kvcli.share import maps
from kvcli.share.base import LayerSharing
from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class KVSharer(LayerSharing):
    """Some layers use the KV pairs of lower layers, chosen by a search.

    KVSharer (Yang et al. 2024, arXiv 2410.18517) finds by calibration which layers can do without their own keys and
    values; pairs of unlike layers are tried first (:mod:`kvcli.retaining_heads.sharing`). The result depends on the
    model: ``kvcli calibrate --share N TEXT…`` stores it.

    Differences: the text after the document is shared too. An owner evicts after its last borrower has attended, and
    scores its units by its own queries; the paper evicts nothing. A borrower's keys and values are computed and
    discarded, so memory falls and computation does not.

    Args:
        map: per layer the layer whose units it uses, joined by underscores: ``0_1_0_3`` lets layer 2 of four use
            those of layer 0. By default the stored one.
    """

    name = "kvsharer"
    map: str = ""

    def __post_init__(self) -> None:
        if self.map:
            maps.parse(self.map)

    def for_model(self, spec: ModelSpec) -> Self:
        """See :class:`kvcli.share.base.LayerSharing`."""
        text = self.map or maps.stored(spec)
        try:
            owners = maps.parse(text)
        except UsageError as error:
            raise ModelError(f"the share map of {spec.name}: {error}", maps.COMMAND) from None
        if len(owners) != spec.layers:
            raise ModelError(
                f"the share map {text} has {len(owners):,} layers, and {spec.name} has {spec.layers:,}", maps.COMMAND
            )
        for layer, owner in enumerate(owners):
            if not maps.alike(spec, layer, owner):
                raise ModelError(
                    f"layer {layer} of {spec.name} cannot use the keys of layer {owner}: their windows or heads differ",
                    maps.COMMAND,
                )
        return replace(self, map=maps.join(owners))

    def owners(self, spec: ModelSpec) -> tuple[int, ...]:
        """See :class:`kvcli.share.base.LayerSharing`."""
        found, own = maps.parse(self.for_model(spec).map), super().owners(spec)
        return maps.resolve([own[i] if owner == i else owner for i, owner in enumerate(found)])
