"""The context: what a reading leaves behind, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from kvcli.cache.prefill_cache import PrefillCache
from kvcli.storage.base import KeptUnits, KVStorage, StoredLayer
from kvcli.utils.malloc import trim


@dataclass(frozen=True)
class Context:
    """A read document. Immutable: questions attend to it and leave no trace.

    Attributes:
        layers: one held layer per attention layer.
        starts: per layer, the RoPE position of the first token behind the document.
        seen: tokens read.
        bits: effective bits per kept number: all bytes, scales and indices included, over keys and values of all units.
        max_position: RoPE positions that prefill and answers use; matters if frequencies depend on the length.
    """

    layers: Sequence[StoredLayer]
    starts: Sequence[int]
    seen: int
    bits: float
    max_position: int | None = None

    @property
    def kept(self) -> int:
        """Units per KV head of the layer that keeps most."""
        return max((layer.pos.shape[1] for layer in self.layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes that the kept units really take on the device, scales, indices and staging included."""
        shared = max((layer.shared_nbytes for layer in self.layers), default=0)
        return sum(layer.nbytes for layer in self.layers) + shared

    @property
    def host_nbytes(self) -> int:
        """Bytes of kept units in host memory, where a hold puts them there."""
        return sum(layer.host_nbytes for layer in self.layers)


def freeze(fill: PrefillCache, hold: KVStorage, *, release: bool = True) -> Context:
    """Turn a fill into a context: keys are rotated once, to their final positions.

    A fill in codes is taken over as it is; its keys stay before RoPE.

    Args:
        fill: a finished reading.
        hold: how to store what it kept.
        release: give up the fill's buffers layer by layer, so that nothing is held twice; the fill is unusable
            afterwards. Keep it (``False``) to read on later.
    """
    if fill.rows != hold.rows:
        raise ValueError(f"what {fill.storage} has coded while it was read cannot be held by {hold}")
    if release:
        fill.release()
    layers: list[StoredLayer] = []
    starts: list[int] = []
    numbers = 0
    for layer in fill.layers:
        c = layer.count
        pos = layer.pos[:, :c].clone()
        starts.append(c if layer.compact else fill.seen)
        if layer.rows is not None:
            held = layer.held()
            numbers += 2 * pos.numel() * fill.spec.head_dim
            if not release or c < layer.capacity:
                held = replace(held, k=held.k.clone(), v=held.v.clone())
            layers.append(replace(held, pos=pos))
            if release:
                layer.release()
            continue
        places = range(c) if layer.compact else pos.long()
        rotate = partial(fill.rotary.rotate, layer.index)
        raw = layer.k[:, :c].to(layer.device)
        v = layer.v[:, :c] if release and c == layer.capacity else layer.v[:, :c].clone()
        survivors = KeptUnits(
            rotate(raw, places),
            v,
            pos,
            layer.window,
            layer.index,
            raw,
            places,
            rotate,
            dict(layer.state),
            fill.calibration.get(layer.index),
            partial(fill.rotary.angles, layer.index, raw[:, :1]),
        )
        numbers += 2 * raw.numel()
        layers.append(hold.freeze(survivors))
        if release:
            layer.release()
            if layer.device.type == "cpu":
                trim()  # what a hold computed with is in pieces that the next layer's do not fit into
    context = Context(layers, starts, fill.seen, 8 * fill.dtype.itemsize, fill.max_position)
    return replace(context, bits=8 * (context.nbytes + context.host_nbytes) / numbers) if numbers else context
