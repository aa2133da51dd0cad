"""What an eviction policy sees of one chunk in one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kvcli.types import Scorer

if TYPE_CHECKING:
    from torch import Tensor


class UnitView(Protocol):
    """All units of a layer, kept ones first: dense, or decoded when asked for."""

    @property
    def k(self) -> Tensor:
        """``[H_kv, u, D]`` before RoPE."""
        ...

    @property
    def v(self) -> Tensor:
        """``[H_kv, u, D]``."""
        ...

    @property
    def rotated(self) -> Tensor:
        """``[H_kv, u + probe, D]``, keys after RoPE."""
        ...


@dataclass
class Chunk:
    """One layer's view of one chunk, after the layer's attention and before eviction.

    Units are in document order: ``kept`` ones, then the chunk's ``new`` ones (``u = kept + new``). Keys and queries are
    before RoPE unless their name says otherwise.

    Attributes:
        layer: index of the layer.
        start: number of tokens read before this chunk.
        units: all units; read through ``k``, ``v`` and ``rotated``.
        new_k, new_v: ``[H_kv, new, D]``, the chunk's keys and values, never quantized. Prefer them to ``k`` and ``v``,
            which must be decoded if kept units are in codes.
        q: ``[H, new, D]``, the chunk's queries.
        pos: ``[H_kv, u]`` int32, each unit's position in the document.
        scores: ``[H_kv, kept]`` float32, the stored scores of kept units.
        state: this layer's running statistics, tensors only; the one thing a policy may write to.
        q_rotated: ``[H, new + probe, D]``, queries after RoPE.
        scale: factor on the logits.
        probe: number of last queries and keys that belong to the question, not to the text.
        heads: the model's retaining heads, for policies with ``needs_heads``.
        probe_q: ``[H, probe, D]``, the question's queries.
        compact: whether places of RoPE are slots; otherwise they are positions in the document.
        rotate: the layer's RoPE, ``(x [H, n, D], places) -> [H, n, D]``; see :class:`kvcli.types.Rotary`.
    """

    layer: int
    start: int
    units: UnitView = field(repr=False)
    new_k: Tensor
    new_v: Tensor
    q: Tensor
    pos: Tensor
    scores: Tensor
    state: dict[str, Tensor]
    q_rotated: Tensor = field(repr=False)
    scale: float
    probe: int = 0
    heads: Scorer | None = None
    probe_q: Tensor | None = None
    compact: bool = True
    rotate: Callable[[Tensor, range | Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def k(self) -> Tensor:
        """``[H_kv, u, D]``, all keys."""
        return self.units.k

    @property
    def v(self) -> Tensor:
        """``[H_kv, u, D]``, all values."""
        return self.units.v

    @property
    def rotated(self) -> tuple[Tensor, Tensor]:
        """Queries ``[H, new + probe, D]`` and keys ``[H_kv, u + probe, D]`` after RoPE."""
        return self.q_rotated, self.units.rotated

    @property
    def new(self) -> int:
        return self.q.shape[1]

    @property
    def kept(self) -> int:
        return self.scores.shape[1]

    def blocks(self, first: int, last: int, block: int = 128) -> Iterator[tuple[int, Tensor]]:
        """Recompute the logits of queries ``first .. last - 1`` of ``new + probe``, a block of queries at a time.

        Yields:
            the block's first query, and its causally masked logits ``[H_kv, H / H_kv, rows, u + probe]`` in the model's
            dtype, scaled and capped. The caller may overwrite them.
        """
        import torch

        from kvcli_kernels.attention import scaled

        q, k = self.rotated
        kv_heads, keys, dim = k.shape
        group = q.shape[0] // kv_heads
        position = torch.arange(keys, device=k.device)
        for start in range(first, last, block):
            stop = min(start + block, last)
            rows = q[:, start:stop].reshape(kv_heads, group * (stop - start), dim)
            logits = scaled((rows @ k.transpose(1, 2)).view(kv_heads, group, stop - start, keys), self.scale)
            future = position > self.kept + torch.arange(start, stop, device=k.device)[:, None]
            yield start, logits.masked_fill_(future, float("-inf"))

    def attention(self, first: int, last: int) -> Tensor:
        """Sum the attention weights that each unit gets from queries ``first .. last - 1`` of ``new + probe``.

        Post-softmax weights, summed over these queries and averaged over the query group: float32 ``[H_kv, u]``.
        """
        import torch

        mass = torch.zeros(self.pos.shape[0], self.kept + self.new + self.probe, device=self.pos.device)
        for _, logits in self.blocks(first, last):
            mass += torch.softmax(logits, dim=-1).sum(dim=(1, 2), dtype=torch.float32)
        return mass[:, : self.kept + self.new] / (self.q.shape[0] // self.pos.shape[0])
