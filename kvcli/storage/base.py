"""The interface of a hold policy: survivors in, something that can be attended to out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.storage.row_codec import RowCodec
    from kvcli.storage.staging import Staging
    from kvcli.types import ModelSpec


@dataclass(frozen=True)
class KeptUnits:
    """What one layer kept of a document.

    Attributes:
        k: ``[H_kv, c, D]`` keys, rotated to their final positions.
        v: ``[H_kv, c, D]``.
        pos: ``[H_kv, c]`` int32, places in the document, strictly increasing per head.
        window: width of the layer's own sliding window, or ``None``.
        layer: index of the layer.
        raw: ``[H_kv, c, D]`` keys before RoPE; a view that lasts as long as ``freeze`` runs. ``None`` with ``rotate``.
        places: RoPE positions of the slots: a range for all heads, or int64 ``[H_kv, c]``.
        rotate: the layer's RoPE, ``(x [H_kv, n, D], positions) -> [H_kv, n, D]``.
        state: what :meth:`KVStorage.observe` has gathered during the reading.
        angles: cos and sin ``[positions, D]`` for a number of positions, where ``rotate`` turns halves as pairs.
        calibration: second moment of the layer's queries over another text, float32 ``[H, D, D]``, where there is one.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    window: int | None
    layer: int = 0
    raw: Tensor | None = None
    places: range | Tensor = range(0)
    rotate: Callable[[Tensor, range | Tensor], Tensor] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    calibration: Tensor | None = None
    angles: Callable[[int], tuple[Tensor, Tensor] | None] | None = None


class StorageBytes(NamedTuple):
    """What a held layer takes on the device and in host memory; on a CPU both are the same RAM.

    ``shared`` is on the device as well, once for all layers that use it in turn.
    """

    device: int
    host: int
    shared: int = 0


class Attendable(Protocol):
    """Something that queries can attend to."""

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """Attention of rotated queries ``[H, m, D]`` over the whole context: ``(o [H, m, D], lse [H, m])``.

        ``q_start`` is the first query's position counted from the context's first slot.
        """
        ...


@runtime_checkable
class Prefetching(Protocol):
    """Something to attend to that is told a guess of the queries while the layer before it computes."""

    def prefetch(self, q: Tensor, scale: float) -> None:
        """Prepare for queries like ``q [H, m, D]``, rotated, which ``attend`` will be called with next."""
        ...


class StoredLayer(Attendable, Protocol):
    """One layer of a frozen context. Immutable."""

    @property
    def pos(self) -> Tensor:
        """``[H_kv, c]`` int32, places in the document."""
        ...

    @property
    def window(self) -> int | None:
        """Width of the layer's own sliding window, or ``None``."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes on the device of keys and values as stored, scales and index included, positions not."""
        ...

    @property
    def host_nbytes(self) -> int:
        """Bytes in host memory; 0 where everything is on the device."""
        ...

    @property
    def shared_nbytes(self) -> int:
        """Bytes on the device of what layers use in turn, as much as this one wants of it."""
        ...

    @property
    def dynamic_reason(self) -> str | None:
        """Why a step over it is not the same work each time (:class:`kvcli.engine.decode_step.StaticStep`); ``None``
        where it is.

        It is where shapes and addresses never change, nothing waits for the device, and what a step leaves for the next
        lies on the device.
        """
        ...

    def dense(self) -> tuple[Tensor, Tensor]:
        """All keys, rotated, and values ``[H_kv, c, D]`` on the device in the model's dtype, for a moment.

        What looks at every unit (citations, the second look) computes with these, whatever ``attend`` leaves out.
        """
        ...

    def begin(self, staging: Staging | None = None) -> Attendable:
        """What one tail attends to; it may remember between calls, but never so that an answer depends on it.

        ``staging`` is memory that this tail's layers use in turn; without it a layer has its own.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class KVStorage:
    """A way to store survivors; a frozen dataclass whose fields are its hyper-parameters."""

    name: ClassVar[str]
    """The policy's name in recipes; equal to its module's name."""

    offloads: ClassVar[bool] = False
    """Keys and values lie in host memory, already while the document is read."""

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        """See the rotated queries ``[H, m, D]`` of the tokens from ``start`` on, while the document is read.

        Args:
            state: the layer's running statistics, to be written to: tensors, saved with the reading.
            layer: index of the layer.
            q: of a chunk, without a probe's.
            start: tokens read before.
        """

    @property
    def calibrated(self) -> Literal["never", "may", "must"]:
        """Whether a calibration of the model (:mod:`kvcli.retaining_heads.calibration`) is of use, or needed."""
        return "never"

    @property
    def affects_prefill(self) -> bool:
        """Whether a reading with this hold differs from one without: in what is gathered, or in what is kept."""
        return type(self).observe is not KVStorage.observe or self.limit is not None or self.rows is not None

    @property
    def limit(self) -> int | None:
        """The most units per KV head of a layer that memory is given for, already during the reading."""
        return None

    @property
    def rows(self) -> RowCodec | None:
        """How keys and values lie already while the document is read; ``None``: as the model made them.

        Layers with a window of their own stay exact. A reading in rows is frozen as it is, by
        :mod:`kvcli.storage.row_codec`.
        """
        return None

    def worth(self, scores: Tensor, q: Tensor, k: Tensor, pos: Tensor, scale: float) -> Tensor:  # noqa: ARG002
        """Where there is a limit: how much units are worth keeping, higher is kept: float32 ``[H_kv, kept + new]``.

        The newer half of the limit stays in any case.

        Args:
            scores: ``[H_kv, kept]``, what was said of kept units before.
            q: ``[H, new, D]``, a chunk's queries, rotated.
            k: ``[H_kv, kept + new, D]``, keys, rotated.
            pos: ``[H_kv, kept + new]`` int32, places in the document.
            scale: factor on the logits.
        """
        raise TypeError(f"the policy '{self.name}' has a limit and does not define worth()")

    def observed_nbytes(self, spec: ModelSpec, layer: int, tokens: int) -> int:
        """Bytes of what :meth:`observe` has gathered of a layer after ``tokens``, on the device and on disk."""
        del spec, layer, tokens
        return 0

    def unit(self, spec: ModelSpec, layer: int) -> int:
        """Bytes of one unit's key and value in one KV head of a layer while the document is read."""
        if self.rows is None or spec.sliding[layer] is not None:
            return spec.unit_bytes
        return 2 * self.rows.width(spec.head_dim)

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """Bytes on the device that freezing one layer takes for a moment: keys rotated, and a copy of the values."""
        del layer
        return spec.kv_heads * units * spec.unit_bytes

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """What one layer's ``units`` per KV head will take, staging included; known before anything is read."""
        del layer
        return StorageBytes(spec.kv_heads * units * spec.unit_bytes, 0)

    def freeze(self, survivors: KeptUnits) -> StoredLayer:  # noqa: ARG002
        """Store one layer's survivors for good."""
        raise TypeError(f"the policy '{self.name}' does not define freeze()")
