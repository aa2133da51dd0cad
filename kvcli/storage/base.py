"""The interface of a KV storage: it turns kept units into a layer that queries can attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.storage.row_codec import RowCodec
    from kvcli.types import ModelSpec
    from kvcli.utils.copy_stream import CopyStream


class Basis(NamedTuple):
    """The left singular vectors of the weights of a layer's keys and values, largest singular value first.

    Attributes:
        k, v: float32 ``[H_kv, D, D]``, orthonormal columns.
        k_bias, v_bias: float32 ``[H_kv, D]``, what the layer adds to the products; zeros for keys with a norm.
    """

    k: Tensor
    k_bias: Tensor
    v: Tensor
    v_bias: Tensor


@dataclass(frozen=True)
class KeptUnits:
    """The units that one layer kept of a document.

    Attributes:
        k: ``[H_kv, c, D]`` keys, rotated to their final positions.
        v: ``[H_kv, c, D]``.
        pos: ``[H_kv, c]`` int32, positions in the document, strictly increasing per head.
        window: width of the layer's sliding window, or ``None``.
        layer: index of the layer.
        raw: ``[H_kv, c, D]`` keys before RoPE, a view valid only during ``freeze``; ``None`` if ``rotate`` is.
        rope_positions: RoPE positions of the slots: a range for all heads, or int64 ``[H_kv, c]``.
        rotate: the layer's RoPE, ``(x [H_kv, n, D], positions) -> [H_kv, n, D]``.
        state: the statistics that :meth:`KVStorage.observe` gathered during prefill.
        angles: maps a number of positions to cos and sin ``[positions, D]``, if ``rotate`` treats halves as pairs.
        calibration: second moment of the layer's queries over another text, float32 ``[H, D, D]``, or ``None``.
        basis: subspaces of the layer's keys and values, for storages with ``needs_basis``.
        layers: number of layers of the model.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    window: int | None
    layer: int = 0
    raw: Tensor | None = None
    rope_positions: range | Tensor = range(0)
    rotate: Callable[[Tensor, range | Tensor], Tensor] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    calibration: Tensor | None = None
    angles: Callable[[int], tuple[Tensor, Tensor] | None] | None = None
    basis: Basis | None = None
    layers: int = 1


class StorageBytes(NamedTuple):
    """Bytes of a stored layer on the device and in host memory; on a CPU both are the same RAM.

    ``shared`` bytes are on the device too, once for all layers that use them in turn.
    """

    device: int
    host: int
    shared: int = 0


class Attendable(Protocol):
    """A stored layer opened for attention."""

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """Attend with rotated queries ``[H, m, D]`` to the whole context: ``(o [H, m, D], lse [H, m])``.

        ``q_start`` is the first query's position counted from the context's first slot.
        """
        ...


@runtime_checkable
class Prefetching(Protocol):
    """A stored layer that can prefetch: it receives predicted queries while the previous layer runs."""

    def prefetch(self, q: Tensor, scale: float) -> None:
        """Prepare for the next ``attend``, whose queries will resemble ``q [H, m, D]``, rotated."""
        ...


class StoredLayer(Attendable, Protocol):
    """One layer of a frozen context. Immutable."""

    @property
    def pos(self) -> Tensor:
        """``[H_kv, c]`` int32, positions in the document."""
        ...

    @property
    def window(self) -> int | None:
        """Width of the layer's sliding window, or ``None``."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes on the device of stored keys and values, scales and index included, positions excluded."""
        ...

    @property
    def host_nbytes(self) -> int:
        """Bytes in host memory; 0 if everything is on the device."""
        ...

    @property
    def shared_nbytes(self) -> int:
        """Bytes on the device that this layer needs of the memory that layers use in turn."""
        ...

    @property
    def selects(self) -> bool:
        """Whether queries attend to selected units, selected once for all queries of a call."""
        ...

    @property
    def dynamic_reason(self) -> str | None:
        """Why a decode step over this layer is not static (:class:`kvcli.engine.static_step.StaticStep`), or ``None``.

        A step is static if shapes and addresses never change and nothing waits for the device. All state that a step
        leaves for the next must be on the device, too.
        """
        ...

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return all keys, rotated, and values ``[H_kv, c, D]`` on the device in the model's dtype, for temporary use.

        Citations and passage retrieval need every unit, including those that ``attend`` skips.
        """
        ...

    def open(self, staging: Staging | None = None) -> Attendable:
        """Open the stored layer for one decode cache. It may cache state between calls, but results must not depend on
        it.

        ``staging`` is memory that the cache's layers use in turn; by default the layer allocates its own.
        """
        ...


class Staging:
    """Buffers of the largest layer's size, shared by all layers; allocated at first use, never moved."""

    def __init__(self) -> None:
        self.readers = 0
        self._size = 0
        self._buffers: dict[str, Tensor] = {}
        self._copy_stream: CopyStream | None = None

    def register(self, *shape: int) -> int:
        """Announce a reader's buffer size before the first use; return the reader's index."""
        self._size = max(self._size, prod(shape))
        self.readers += 1
        return self.readers - 1

    def buffer(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Return the buffer ``name`` as a view of ``shape``; its contents are kept, zeros at first."""
        if name not in self._buffers:
            self._buffers[name] = like.new_zeros(self._size)
        return self._buffers[name][: prod(shape)].view(shape)

    def copy_stream(self, like: Tensor) -> CopyStream:
        """Return the stream on which all layers prefetch."""
        from kvcli.utils.copy_stream import CopyStream

        self._copy_stream = self._copy_stream or CopyStream(like.device)
        return self._copy_stream

    @property
    def nbytes(self) -> int:
        """Bytes of all allocated buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class ResidentLayer:
    """Base of stored layers that are on the device, all of them, and attend to every unit by static steps."""

    host_nbytes = 0
    shared_nbytes = 0
    selects = False

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`StoredLayer`."""
        return None

    def open(self, staging: Staging | None = None) -> Self:  # noqa: ARG002
        """See :class:`StoredLayer`; there is nothing to open."""
        return self


@dataclass(frozen=True, kw_only=True)
class KVStorage:
    """A way to store kept units; a frozen dataclass whose fields are its hyper-parameters."""

    name: ClassVar[str]
    """The storage's name in recipes; equal to its module's name."""

    offloads: ClassVar[bool] = False
    """Whether keys and values are in host memory, already during prefill."""

    keeps_latents: ClassVar[bool] = False
    """Whether a model's latents are stored once; otherwise as keys and as values (:mod:`kvcli.models.latent`)."""

    needs_basis: ClassVar[bool] = False
    """Whether the storage uses :class:`Basis`."""

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        """Gather statistics of rotated queries during prefill.

        Args:
            state: the layer's running statistics, to be updated: tensors, saved with the prefill.
            layer: index of the layer.
            q: ``[H, m, D]``, rotated queries of a chunk, without a probe's.
            start: tokens read before the chunk.
        """

    @property
    def calibrated(self) -> Literal["never", "may", "must"]:
        """Whether the storage never, optionally or always uses a calibration
        (:mod:`kvcli.retaining_heads.calibration`)."""
        return "never"

    @property
    def affects_prefill(self) -> bool:
        """Whether prefill with this storage gathers or keeps anything else than without."""
        return type(self).observe is not KVStorage.observe or self.limit is not None or self.row_codec is not None

    @property
    def limit(self) -> int | None:
        """Maximum number of units per KV head of a layer in memory, already during prefill; ``None`` for no limit."""
        return None

    @property
    def row_codec(self) -> RowCodec | None:
        """Codec of keys and values during prefill; ``None`` keeps the model's dtype.

        Sliding-window layers stay exact. Coded units are frozen unchanged (:mod:`kvcli.storage.row_codec`).
        """
        return None

    def pool_scores(self, scores: Tensor, q: Tensor, k: Tensor, pos: Tensor, scale: float) -> Tensor:  # noqa: ARG002
        """Score all units of a storage with a limit, higher is kept: float32 ``[H_kv, kept + new]``.

        The newer half of the limit is always kept.

        Args:
            scores: ``[H_kv, kept]``, the previous scores of kept units.
            q: ``[H, new, D]``, a chunk's rotated queries.
            k: ``[H_kv, kept + new, D]``, rotated keys.
            pos: ``[H_kv, kept + new]`` int32, positions in the document.
            scale: factor on the logits.
        """
        raise TypeError(f"the policy '{self.name}' has a limit and does not define worth()")

    def observed_nbytes(self, spec: ModelSpec, layer: int, tokens: int) -> int:
        """Return the bytes of a layer's observed statistics after ``tokens``, on the device and on disk."""
        del spec, layer, tokens
        return 0

    def unit_nbytes(self, spec: ModelSpec, layer: int) -> int:
        """Return the bytes of one unit's key and value in one KV head of a layer during prefill."""
        if self.row_codec is None or spec.sliding[layer] is not None:
            return spec.unit_bytes
        return (1 if spec.latent else 2) * self.row_codec.width(spec.head_dim)

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """Return the temporary bytes on the device for freezing one layer: rotated keys, and a copy of the values."""
        del layer
        return spec.kv_heads * units * spec.unit_bytes

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Return the bytes of one layer with ``units`` per KV head, staging included; needs no data."""
        del layer
        return StorageBytes(spec.kv_heads * units * spec.unit_bytes, 0)

    def freeze(self, kept: KeptUnits) -> StoredLayer:  # noqa: ARG002
        """Store one layer's kept units permanently."""
        raise TypeError(f"the policy '{self.name}' does not define freeze()")
