"""The context: the frozen result of prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from kvcli.cache.base import State, current_device
from kvcli.cache.folded import Folded, frozen
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.storage.base import KeptUnits, KVStorage, StoredLayer
from kvcli.storage.dense import DenseLayer
from kvcli.utils.process_memory import trim


@dataclass(frozen=True)
class Context:
    """A frozen document. Immutable: questions attend to it without changing it.

    Attributes:
        layers: one stored layer per attention layer.
        starts: per layer, the RoPE position of the first token after the document.
        seen: tokens read.
        bits: effective bits per kept number: all bytes, scales and indices included, over keys and values of all units.
        max_position: RoPE positions of prefill and answers; matters if frequencies depend on the length.
        state: of the model's recurrent layers after the document, if it has such layers. Not to be changed.
        owners: per layer the layer whose stored layer it uses, the same object; empty if each has its own.
        folded: what is remembered of evicted units, if the recipe has a fold and something was evicted.
    """

    layers: Sequence[StoredLayer]
    starts: Sequence[int]
    seen: int
    bits: float
    max_position: int | None = None
    state: State | None = None
    owners: tuple[int, ...] = ()
    folded: Folded | None = None

    def owner(self, layer: int) -> int:
        """Return the layer whose keys and values a layer uses: its own index unless it shares."""
        return self.owners[layer] if self.owners else layer

    @property
    def _own(self) -> list[StoredLayer]:
        return [layer for i, layer in enumerate(self.layers) if self.owner(i) == i]

    @property
    def kept(self) -> int:
        """Units per KV head of the layer that keeps most."""
        return max((layer.pos.shape[1] for layer in self.layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the kept units on the device: scales, indices, staging and the state of a fold included."""
        shared = max((layer.shared_nbytes for layer in self.layers), default=0)
        shared += 0 if self.folded is None else self.folded.nbytes
        return sum(layer.nbytes for layer in self._own) + shared

    @property
    def host_nbytes(self) -> int:
        """Bytes of kept units in host memory, if the storage offloads."""
        return sum(layer.host_nbytes for layer in self._own)


def freeze(prefill_cache: PrefillCache, storage: KVStorage, *, release: bool = True) -> Context:
    """Freeze a prefill cache: rotate keys once to their final positions, and store them. Keys in codes stay before
    RoPE.

    Args:
        prefill_cache: a finished prefill.
        storage: how to store the kept units.
        release: free the prefill cache's buffers layer by layer, so that nothing exists twice; the cache is unusable
            afterwards. ``False`` keeps it for further chunks.

    Raises:
        ValueError: the prefill cache has other codes than the storage.
    """
    if prefill_cache.row_codec != storage.row_codec:
        raise ValueError(f"{storage} differs from {prefill_cache.storage}, whose codes cannot be held in another form")
    if release:
        prefill_cache.release()
    layers: dict[int, StoredLayer] = {}
    starts: dict[int, int] = {}
    numbers = 0
    for layer in prefill_cache.layers:
        if layer.uses_owner:
            continue
        c = layer.count
        pos = layer.pos[:, :c].clone()
        starts[layer.index] = c if layer.compact else prefill_cache.seen
        if layer.row_codec is not None:
            stored = layer.stored()
            numbers += 2 * pos.numel() * layer.dim
            if not release or c < layer.capacity:
                k = stored.k.clone()
                stored = replace(stored, k=k, v=k if prefill_cache.spec.latent else stored.v.clone())
            layers[layer.index] = replace(stored, pos=pos)
            if release:
                layer.release()
            continue
        rope_positions = range(c) if layer.compact else pos.long()
        rotate = partial(prefill_cache.rotary.rotate, layer.index)
        raw = layer.k[:, :c].to(layer.device)
        k = rotate(raw, rope_positions)
        v = layer.v[:, :c] if release and c == layer.capacity else layer.v[:, :c].clone()
        kept = KeptUnits(
            k,
            k if prefill_cache.spec.latent else v,
            pos,
            layer.window,
            layer.index,
            raw,
            rope_positions,
            rotate,
            dict(layer.state),
            prefill_cache.calibration.get(layer.index),
            partial(prefill_cache.rotary.angles, layer.index, raw[:, :1]),
            None if prefill_cache.basis is None or layer.window is not None else prefill_cache.basis(layer.index),
            len(prefill_cache.layers),
        )
        numbers += 2 * raw.numel()
        with current_device(layer.device):
            if layer.leads:
                layers[layer.index] = DenseLayer(kept.k, kept.v, pos, layer.window)
            elif layer.follows:
                lower = prefill_cache.leaders[layer.index]
                layers[lower], layers[layer.index] = prefill_cache.share.join(layers[lower], kept, storage)
            else:
                layers[layer.index] = storage.freeze(kept)
        if release:
            layer.release()
            if layer.device.type == "cpu":
                trim()  # what a hold computed with is in pieces that the next layer's do not fit into
    state, folding = prefill_cache.state, prefill_cache.folding
    if state is not None and not release:
        state = state.copy()
    context = Context(
        [layers[owner] for owner in prefill_cache.owners],
        [starts[owner] for owner in prefill_cache.owners],
        prefill_cache.seen,
        8 * prefill_cache.dtype.itemsize,
        prefill_cache.max_position,
        state,
        prefill_cache.owners if prefill_cache.last_users else (),
        None if folding is None else frozen(folding, (layer.state for layer in prefill_cache.layers)),
    )
    return replace(context, bits=8 * (context.nbytes + context.host_nbytes) / numbers) if numbers else context
