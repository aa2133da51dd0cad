"""The interface of a hold policy: survivors in, something that can be attended to out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Survivors:
    """What one layer kept of a document.

    Attributes:
        k: ``[H_kv, c, D]`` keys, rotated to their final positions.
        v: ``[H_kv, c, D]``.
        pos: ``[H_kv, c]`` int32, places in the document, strictly increasing per head.
        window: width of the layer's own sliding window, or ``None``.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    window: int | None


class HeldLayer(Protocol):
    """One layer of a frozen context. Immutable."""

    @property
    def pos(self) -> Tensor:
        """``[H_kv, c]`` int32, places in the document."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values as stored, scales included, positions not."""
        ...

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:
        """Attention of rotated queries ``[H, m, D]`` over the whole context: ``(o [H, m, D], lse [H, m])``.

        ``q_start`` is the first query's position counted from the context's first slot.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A way to store survivors; a frozen dataclass whose fields are its hyper-parameters."""

    name: ClassVar[str]
    """The policy's name in recipes; equal to its module's name."""

    bits: ClassVar[float] = 16
    """Effective bits per stored number, scales included; 16 stands for the model's own dtype."""

    def freeze(self, survivors: Survivors) -> HeldLayer:  # noqa: ARG002
        """Store one layer's survivors for good."""
        raise TypeError(f"the policy '{self.name}' does not define freeze()")
