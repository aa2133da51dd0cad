"""Block stores: blocks of keys and values in host memory."""

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
        """Why ``fetch`` on a GPU is not static (see :class:`kvcli.storage.base.StoredLayer`), or ``None``."""
        ...

    def fetch(self, ids: Tensor, slots: Tensor, staged: Pair, out: Pair, copy_stream: CopyStream) -> None:
        """Copy rotated keys and values of blocks to staging slots; slots without a selected block stay unchanged.

        Args:
            ids: int64 ``[H_kv, K]``, ``count`` for none.
            slots: int64 ``[H_kv, K]``, the slots in ``staged``, -1 if a block is not staged.
            staged: ``[H_kv, S, block, D]``.
            out: ``[H_kv, K, block, D]``; must not overlap ``staged``.
            copy_stream: a stream for concurrent copies; they end before the main stream's next work.
        """
        ...

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return all units of the layer ``[H_kv, n, D]`` on the device, including those outside blocks."""
        ...


@dataclass(frozen=True)
class HostStore:
    """Rotated keys and values of a layer in host memory, pinned for a GPU.

    Attributes:
        k, v: ``[H_kv, n, D]`` in host memory.
        device: the device that blocks are copied to.
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
        """``None``: a kernel reads pinned memory directly."""
        return None

    def fetch(self, ids: Tensor, slots: Tensor, staged: Pair, out: Pair, copy_stream: CopyStream) -> None:  # noqa: ARG002
        """See :class:`BlockStore`."""
        for x, old, new in zip((self.k, self.v), staged, out, strict=True):
            rows(x, self.first, self.count, self.block, ids, slots, old, new)

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`BlockStore`."""
        return self.k.to(self.device), self.v.to(self.device)


def blocks(x: Tensor, first: int, count: int, block: int) -> Tensor:
    """View ``count * block`` units of ``[H_kv, n, D]`` from ``first`` on as ``[H_kv, count, block, D]``."""
    return x[:, first : first + count * block].view(x.shape[0], count, block, x.shape[2])


def rows(
    x: Tensor, first: int, count: int, block: int, ids: Tensor, slots: Tensor, staged: Tensor, out: Tensor
) -> None:
    """Copy blocks of ``x [H_kv, n, D]`` to ``out``; arguments as for :func:`blocks` and :meth:`BlockStore.fetch`."""
    from kvcli_kernels.gather import gather

    gather(blocks(x, first, count, block).flatten(2), staged.flatten(2), ids, slots, out.flatten(2))


def to_host(x: Tensor, device: torch.device) -> Tensor:
    """Return ``x`` in host memory, pinned if ``device`` is a GPU; copies only if necessary."""
    import torch

    pinned = device.type == "cuda"
    if x.device.type == "cpu" and (x.is_pinned() or not pinned):
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=pinned)
    return host.copy_(x)
