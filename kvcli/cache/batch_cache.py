"""Decode caches of several answers as one KV cache: one forward pass adds a token to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvcli.cache.base import with_sink
from kvcli.cache.decode_cache import DecodeCache
from kvcli_kernels.merge import merge

_QUERIES = 16
"""Query rows of a KV head that attend to a context in one call. With more, packed storages unpack it first."""


@dataclass
class BatchCache:
    """The KV cache of one decode step of several answers; row ``j`` of the step belongs to ``caches[j]``.

    Each answer attends to its own tokens. Answers after the same context attend to it in one call, with the numbers
    that they would have alone. The caller extends the caches.

    Args:
        caches: no two the same; without recurrent layers, after contexts in memory that do not select units.
    """

    caches: Sequence[DecodeCache]
    layers: list[BatchLayer] = field(init=False)

    def __post_init__(self) -> None:
        self.max_position = self.caches[0].max_position
        by_context: dict[int, list[int]] = {}
        for j, cache in enumerate(self.caches):
            by_context.setdefault(id(cache.context), []).append(j)
        groups = list(by_context.values())
        self.layers = [BatchLayer(self.caches, groups, i) for i in range(len(self.caches[0].layers))]

    def position_ids(self, count: int) -> Tensor:  # noqa: ARG002
        """See :class:`kvcli.cache.base.KVCache`."""
        return torch.cat([cache.position_ids(1) for cache in self.caches])

    def take_state(self) -> None:
        """See :class:`kvcli.cache.base.KVCache`."""


@dataclass
class BatchLayer:
    """One layer of a batch; ``groups`` are the rows after each context."""

    caches: Sequence[DecodeCache]
    groups: list[list[int]]
    index: int

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """See :class:`kvcli.cache.base.KVCacheLayer`."""
        caches, rotary = self.caches, self.caches[0].rotary
        starts = [0 if c.context is None else c.context.starts[self.index] for c in caches]
        positions = torch.tensor([s + c.length for s, c in zip(starts, caches, strict=True)], device=q.device)
        q, k = rotary.rotate(self.index, q, positions), rotary.rotate(self.index, k, positions)
        rows = zip(caches, *(torch.split(x, 1, dim=1) for x in (q, k, v)), strict=True)
        own = [c.layers[self.index].attend_own(*row, scale, window) for c, *row in rows]
        term = torch.cat([o for o, _ in own], dim=1), torch.cat([lse for _, lse in own], dim=1)
        before = torch.zeros_like(term[0]), torch.full_like(term[1], -torch.inf)
        for group in self.groups:
            self._attend_context(group, q, before, scale, window)
        return with_sink(merge(before, term), sink)

    def _attend_context(
        self, group: list[int], q: Tensor, out: tuple[Tensor, Tensor], scale: float, window: int | None
    ) -> None:
        """Attend with some rows to the context that they share; writes their term into ``out``."""
        first = self.caches[group[0]]
        slots = 0 if first.context is None else first.context.layers[self.index].pos.shape[1]
        if not slots:
            return
        (heads, _, dim), kv_heads = q.shape, first.layers[self.index].k.shape[0]
        most = max(1, _QUERIES * kv_heads // heads) if window is None else 1  # a window begins elsewhere in each row
        for part in (group[i : i + most] for i in range(0, len(group), most)):
            # Rows become heads of one token, next to the others of their KV head.
            alike = q[:, part].view(kv_heads, -1, len(part), dim).transpose(1, 2).reshape(-1, 1, dim)
            start = slots + self.caches[part[0]].length
            for found, wanted in zip(first.context_layers[self.index].attend(alike, scale, start), out, strict=True):
                by_row = found.view(kv_heads, len(part), heads // kv_heads, -1).transpose(1, 2)
                wanted[:, part] = by_row.reshape(heads, len(part), *found.shape[2:])
