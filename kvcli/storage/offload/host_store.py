"""Where blocks come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvcli.utils.copy_stream import CopyStream


Pair = tuple["Tensor", "Tensor"]


class BlockStore(Protocol):
    """Blocks of ``block`` consecutive units each, ``count`` of them per KV head."""

    @property
    def count(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        ...

    @property
    def host_nbytes(self) -> int:
        """Bytes in host memory."""
        ...

    @property
    def dynamic_reason(self) -> str | None:
        """See :class:`kvcli.storage.base.StoredLayer`, of what ``bring`` does on a card."""
        ...

    def fetch(self, ids: Tensor, slots: Tensor, staged: Pair, out: Pair, aside: CopyStream) -> None:
        """Keys, rotated, and values of blocks into staging slots; those that no block is wanted in stay as they are.

        Args:
            ids: int64 ``[H_kv, K]``, ``count`` for none.
            slots: int64 ``[H_kv, K]``, where ``staged`` has them, -1 where it does not.
            staged: ``[H_kv, S, block, D]``.
            out: ``[H_kv, K, block, D]``; no part of ``staged``.
            aside: for what may be done meanwhile; it is over for whoever is told something on the main stream next.
        """
        ...

    def dense(self) -> tuple[Tensor, Tensor]:
        """All units of the layer ``[H_kv, n, D]`` on the device, those outside blocks included."""
        ...


@dataclass(frozen=True)
class HostStore:
    """Rotated keys and values of a layer in host memory, pinned where the device is a card.

    Attributes:
        k, v: ``[H_kv, n, D]`` in host memory.
        device: where blocks go.
        block: units per block.
        first: units before the first block.
        count: blocks per KV head.
    """

    k: Tensor
    v: Tensor
    device: torch.device
    block: int
    first: int
    count: int

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def host_nbytes(self) -> int:
        """Keys and values."""
        return self.k.nbytes + self.v.nbytes

    @property
    def dynamic_reason(self) -> None:
        """A kernel reads pinned memory as it lies."""
        return None

    def fetch(self, ids: Tensor, slots: Tensor, staged: Pair, out: Pair, aside: CopyStream) -> None:  # noqa: ARG002
        """See :class:`BlockStore`."""
        for x, old, new in zip((self.k, self.v), staged, out, strict=True):
            rows(x, self.first, self.count, self.block, ids, slots, old, new)

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`BlockStore`."""
        return self.k.to(self.device), self.v.to(self.device)


def blocks(x: Tensor, first: int, count: int, block: int) -> Tensor:
    """``[H_kv, n, D]`` as ``[H_kv, count, block, D]``, a view of ``count * block`` units from ``first`` on."""
    return x[:, first : first + count * block].view(x.shape[0], count, block, x.shape[2])


def rows(
    x: Tensor, first: int, count: int, block: int, ids: Tensor, slots: Tensor, staged: Tensor, out: Tensor
) -> None:
    """Blocks of ``x [H_kv, n, D]`` into ``out``; arguments as for :func:`blocks` and :meth:`BlockStore.fetch`."""
    from kvcli_kernels.gather import gather

    gather(blocks(x, first, count, block).flatten(2), staged.flatten(2), ids, slots, out.flatten(2))


def to_host(x: Tensor, device: torch.device) -> Tensor:
    """``x`` in host memory: itself where it is there as it should be, else a copy; pinned for a card."""
    import torch

    pinned = device.type == "cuda"
    if x.device.type == "cpu" and (x.is_pinned() or not pinned):
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=pinned)
    return host.copy_(x)
