"""Cascading KV cache (Willette et al. 2024, arXiv 2406.17808)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

FILL = "fill"
"""Name of the running statistic: units in each level, int64 ``[levels]``."""


@dataclass(frozen=True, kw_only=True)
class Cascade(EvictionPolicy):
    """Keeps sinks and a cascade of windows: each takes over every second unit that the one before lets go.

    Of two neighbours the one with more attention is taken. So ``budget`` units span ``(2^levels - 1) / levels`` times
    as many tokens. Attention is a moving average over queries, updated once per chunk, as published. Positions are
    slots. The remainder of the division by ``levels`` belongs to the first window.

    Args:
        levels: number of windows.
        decay: of the moving average, per query.
        stabilizers: least length of the first window.
    """

    name: ClassVar[str] = "cascade"
    scores_are_final: ClassVar[bool] = False
    observers: ClassVar[int] = 128
    sinks: int = 4
    levels: int = 4
    decay: float = 0.9999999

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UsageError(f"cascade: levels must be 1 or more, got {self.levels}", "levels=4")
        if not 0 < self.decay < 1:
            raise UsageError(f"cascade: decay must be between 0 and 1, got {self.decay}", "decay=0.9999999")
        super().__post_init__()
        if self.budget is not None and min(self.widths(self.budget)) < 1:
            raise UsageError(
                f"cascade: budget={self.budget} and sinks={self.sinks} leave a level of {self.levels} without units",
                f"--budget {self.protected + self.levels}",
            )

    def widths(self, budget: int) -> list[int]:
        """Return the units of each level of a layer with a budget."""
        room = max(0, budget - self.sinks)
        first = max(room // self.levels + room % self.levels, self.stabilizers or 0)
        rest = self.levels - 1
        other = (room - first) // rest if rest else 0
        return [room - rest * other] + [other] * rest

    @property
    def recent(self) -> int:
        """Length of the first window."""
        return 0 if self.budget is None else self.widths(self.budget)[0]

    @property
    def newest(self) -> int:
        """The first window, also kept at the end of the text."""
        return self.recent

    def rescore(self, chunk: Chunk) -> Tensor:
        """Update the moving average of attention, averaged over the query group: ``[H_kv, kept + new]``."""
        import torch

        average = torch.zeros(chunk.pos.shape, device=chunk.pos.device)
        average[:, : chunk.kept] = chunk.scores * self.decay**chunk.new
        for first, logits in chunk.blocks(0, chunk.new):
            weights = torch.softmax(logits, dim=-1)[..., : average.shape[1]].float().mean(dim=1)
            later = torch.arange(chunk.new - 1 - first, chunk.new - 1 - first - weights.shape[1], -1).double()
            factor = ((1 - self.decay) * self.decay**later).float().to(weights.device)
            average += (weights * factor[:, None]).sum(dim=1)
        return average

    def choose(self, chunk: Chunk, scores: Tensor, budget: int, recent: int) -> Tensor:  # noqa: ARG002
        """Pass the chunk's units through the levels; the scores are those after the chunk."""
        import torch

        heads, units = scores.shape
        sinks = min(self.sinks, units)
        fill = self._fill(chunk, budget)
        placed = sinks + sum(fill)
        index = torch.arange(units, device=scores.device).expand(heads, units)
        arrivals = index[:, placed:]
        clock = chunk.pos[0, placed:].long() - self.sinks
        levels: list[Tensor] = []
        begin = placed
        for level, (width, old) in enumerate(zip(self.widths(budget), fill, strict=True)):
            begin -= old
            held = Level(index[:, begin : begin + old], width, 2**level, budget - self.sinks)
            kept, arrivals, clock = insert(held, arrivals, clock, scores)
            levels.insert(0, kept)
        chunk.state[FILL] = torch.tensor([kept.shape[1] for kept in reversed(levels)], device=scores.device)
        return torch.cat([index[:, :sinks], *levels], dim=1)

    def _fill(self, chunk: Chunk, budget: int) -> list[int]:
        """Return the units of each level before the chunk; nothing was evicted if none are stored."""
        if FILL in chunk.state:
            found: list[int] = chunk.state[FILL].tolist()
            return found
        room, fill = max(0, chunk.kept - self.sinks), list[int]()
        for width in self.widths(budget):
            fill.append(min(width, room))
            room -= fill[-1]
        return fill

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: the levels' lengths too."""
        return super().state_nbytes(spec, units) + 8 * self.levels


class Level(NamedTuple):
    """One window before a chunk.

    Attributes:
        units: int64 ``[H_kv, n]``, its units, oldest first.
        width: most units.
        step: it takes a unit at every ``step``-th tick of the clock.
        eager: before this tick it takes every unit.
    """

    units: Tensor
    width: int
    step: int
    eager: int


def insert(level: Level, arrivals: Tensor, clock: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Insert units into a level, oldest first; one that comes between two ticks competes with the newest one.

    Args:
        level: the level.
        arrivals: int64 ``[H_kv, n]``, units that the level before let go.
        clock: int64 ``[n]``, when they arrive.
        scores: float32 ``[H_kv, u]``; the higher score wins, the later unit of equal ones.

    Returns:
        the level's units ``[H_kv, <= width]``, the units that it let go ``[H_kv, m]``, and when ``[m]``.
    """
    import torch

    heads, old = level.units.shape
    taken = (clock % level.step == 0) | (clock <= level.eager)
    if not old and len(taken):
        taken[0] = True
    ticks = clock[taken]
    entries = old + len(ticks)
    if not entries:
        return level.units, arrivals, clock
    units = torch.cat([level.units, arrivals], dim=1)
    begins = torch.cat([taken.new_ones(old), taken])
    entry = (begins.cumsum(0) - 1).expand(heads, -1)
    value = scores.gather(1, units)
    best = value.new_full((heads, entries), float("-inf")).scatter_reduce(1, entry, value, "amax")
    candidates = units.masked_fill(value < best.gather(1, entry), -1)
    winner = units.new_full((heads, entries), -1).scatter_reduce(1, entry, candidates, "amax")
    over = max(0, entries - level.width)
    first = level.width - old  # the insertion that the level has no room for
    return winner[:, over:], winner[:, :over], ticks[first : first + over]
