"""A block store with keys as a low-rank factorization and values in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcli.storage.offload.host_store import Pair, rows

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.utils.copy_stream import CopyStream

_PIECE = 4096  # rows that are multiplied at a time


def factorise(keys: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compute the best factors of a rank: ``keys ≈ coefficients @ basis``.

    The right singular vectors are the eigenvectors of the Gram matrix. It is summed piece by piece, so no matrix of the
    text's length is decomposed. The error is that of the SVD.

    Args:
        keys: ``[n, M]``.
        rank: at most ``M``.

    Returns:
        coefficients ``[n, rank]`` and an orthonormal basis ``[rank, M]`` in the keys' dtype.
    """
    import torch

    gram = torch.zeros(keys.shape[1], keys.shape[1], dtype=torch.float64, device=keys.device)
    for piece in torch.split(keys, _PIECE):
        gram += (piece.float().T @ piece.float()).double()
    basis = torch.linalg.eigh(gram).eigenvectors[:, -rank:].float()
    coefficients = torch.cat([(piece.float() @ basis).to(keys.dtype) for piece in torch.split(keys, _PIECE)])
    return coefficients, basis.T.to(keys.dtype)


@dataclass(frozen=True)
class LowRankStore:
    """Keys before RoPE as coefficients on the device, shared by all heads; values in host memory.

    Attributes:
        coefficients: ``[count * block, r]``.
        basis: ``[H_kv, r, D]``.
        v: ``[H_kv, n, D]`` in host memory.
        pos: int32 ``[H_kv, n]`` if RoPE positions are document positions, ``None`` if they are slots.
        rotate: the layer's RoPE.
        exact: int64 slots ``[H_kv, e]`` of dense units and their rotated keys ``[H_kv, e, D]``.
        block, count: units per block, blocks per KV head; the first is at slot 0.
        angles: cos and sin of all positions, shared by the layers, if ``rotate`` treats halves as pairs.
    """

    coefficients: Tensor
    basis: Tensor
    v: Tensor
    pos: Tensor | None
    rotate: Callable[[Tensor, range | Tensor], Tensor]
    exact: tuple[Tensor, Tensor]
    block: int
    count: int
    angles: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of both factors; the stored layer counts the exact keys."""
        return self.coefficients.nbytes + self.basis.nbytes

    @property
    def host_nbytes(self) -> int:
        """Bytes of the values."""
        return self.v.nbytes

    @property
    def dynamic_reason(self) -> str | None:
        """Without a table of angles the model rotates only missed keys, and the host must know how many."""
        if self.angles is not None:
            return None
        return "the model rotates shadowkv's missed keys, whose number varies"

    def fetch(self, ids: Tensor, slots: Tensor, staged: Pair, out: Pair, copy_stream: CopyStream) -> None:
        """Copy values while keys are reconstructed; see :class:`kvcli.storage.offload.host_store.BlockStore`.

        The host waits for neither, unless the model has its own rotation.
        """
        from kvcli_kernels.gather import gather
        from kvcli_kernels.reconstruct import reconstruct

        with copy_stream.run():
            rows(self.v, 0, self.count, self.block, ids, slots, staged[1], out[1])
        values_copied, (k, staged_k) = copy_stream.mark(), (out[0], staged[0].flatten(2))
        gather(staged_k, staged_k, ids.new_full(ids.shape, staged_k.shape[1]), slots, k.flatten(2))
        missed = (slots < 0) & (ids < self.count)
        if self.angles is None:
            heads, columns = missed.nonzero(as_tuple=True)
            k[heads, columns] = self.keys(heads, ids[heads, columns])
        else:
            reconstruct(self.coefficients, self.basis, ids.masked_fill(~missed, -1), self.pos, *self.angles, k)
        copy_stream.join(values_copied)

    def keys(self, heads: Tensor, ids: Tensor) -> Tensor:
        """Reconstruct and rotate the keys ``[M, block, D]`` of ``M`` blocks, given by sorted heads and block ids."""
        import torch

        slots = ids[:, None] * self.block + torch.arange(self.block, device=ids.device)  # [M, block]
        factors = self.coefficients[slots]
        counts = torch.bincount(heads, minlength=len(self.basis)).tolist()
        # One product per block, so that a key does not depend on the other missed blocks.
        k = torch.cat(
            [
                torch.bmm(part, basis.expand(len(part), -1, -1))
                for part, basis in zip(torch.split(factors, counts), self.basis, strict=True)
            ]
        )
        return self.rotate(k, slots if self.pos is None else self.pos[heads[:, None], slots].long())

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.offload.host_store.BlockStore`."""
        slots, keys = self.exact
        end = self.count * self.block
        k = self.v.new_zeros(self.v.shape, device=keys.device)
        rope_positions = range(end) if self.pos is None else self.pos[:, :end].long()
        k[:, :end] = self.rotate(self.coefficients @ self.basis, rope_positions)
        k.scatter_(1, slots.unsqueeze(-1).expand(keys.shape), keys)
        return k, self.v.to(keys.device)
