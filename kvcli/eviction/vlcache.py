"""VL-Cache: attention of what follows the pictures, and a budget for each layer (Tu et al. 2024, arXiv 2410.23317)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import Chunk, EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

DENSE = "dense"
"""Name of a running statistic: the share of attention weights that count, float32 ``[1]``."""


@dataclass(frozen=True, kw_only=True)
class Vlcache(EvictionPolicy):
    """Keeps what the question after the pictures attends to, in budgets by how many weights of a layer count.

    A weight counts if it is at least ``least`` of the largest in its row. Once the whole text is read, the layers share
    the budget in proportion to their parts of such weights. Until then each keeps ``slack`` times the budget, where the
    paper keeps everything. The question is the probe, so pictures need no mask: kvcli puts them before the text. A
    tenth of the budget goes to the newest units. The published clip of a layer's budget to 1 % of the prompt is not
    made, so the budgets sum to what was asked for.

    Args:
        slack: units that a layer keeps while the text is read, in budgets.
        least: weights below this part of their row's largest count as none.
        window: maximum number of observing queries.
    """

    name: ClassVar[str] = "vlcache"
    scores_are_final: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    allots: ClassVar[bool] = True
    observers: ClassVar[int] = 128
    slack: float = 2.0
    least: float = 0.01
    window: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.slack >= 1:
            raise UsageError(f"{self.name}: slack must be 1 or more, got {self.slack}", "slack=2")
        if not 0 < self.least < 1:
            raise UsageError(f"{self.name}: least must be above 0 and below 1, got {self.least}", "least=0.01")
        if self.window < 1:
            raise UsageError(f"{self.name}: window must be 1 or more, got {self.window}", "window=128")
        if self.pyramid or self.victims != "drop":
            raise UsageError(
                f"{self.name} divides the budget itself, and drops what it evicts", "leave out pyramid and victims"
            )

    def units(self, layer: int, layers: int) -> int | None:  # noqa: ARG002  # all layers keep the same until the end
        """See :meth:`EvictionPolicy.units`; while the text is read."""
        return None if self.budget is None else round(self.slack * self.budget)

    def final_units(self, layer: int, layers: int) -> int | None:  # noqa: ARG002  # they sum to this
        """See :meth:`EvictionPolicy.final_units`."""
        return self.budget

    @property
    def newest(self) -> int:
        """A tenth of the budget."""
        return (self.budget or 0) // 10

    @property
    def recent(self) -> int:
        """A tenth of the budget, unless ``stabilizers`` is set."""
        return self.newest if self.stabilizers is None else self.stabilizers

    def rescore(self, chunk: Chunk) -> Tensor:
        """Sum the post-softmax attention of the observing queries: ``[H_kv, kept + new]``; note the layer's share."""
        import torch

        rows = chunk.new + chunk.probe
        first = rows - min(self.window, chunk.probe or chunk.new)
        mass = torch.zeros(chunk.pos.shape[0], rows + chunk.kept, device=chunk.pos.device)
        few, all_ = mass.new_zeros(()), mass.new_zeros(())
        for _, logits in chunk.blocks(first, rows):
            seen = logits > float("-inf")
            few += (seen & (logits < logits.amax(dim=-1, keepdim=True) + math.log(self.least))).sum()
            all_ += seen.sum()
            mass += torch.softmax(logits, dim=-1).sum(dim=(1, 2), dtype=torch.float32)
        chunk.state[DENSE] = (1 - few / all_).reshape(1)
        return mass[:, : chunk.kept + chunk.new]

    def allot(self, states: Sequence[dict[str, Tensor]], counts: Sequence[int]) -> list[int]:
        """See :meth:`EvictionPolicy.allot`."""
        return water_fill(
            [float(state[DENSE]) for state in states], counts, self.budget or 0, max(1, self.sinks + self.newest)
        )

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:  # noqa: ARG002
        """See :meth:`EvictionPolicy.state_nbytes`: one number."""
        return 4


def water_fill(shares: Sequence[float], most: Sequence[int], mean: int, least: int) -> list[int]:
    """Divide ``mean`` units per layer in proportion to ``shares``, each layer between ``least`` and its ``most``."""
    total = min(mean * len(most), sum(most))

    def given(scale: float) -> list[float]:
        return [min(max(scale * share, least), top) for share, top in zip(shares, most, strict=True)]

    low, high = 0.0, max(most, default=0) / max(min(shares, default=1.0), 1e-9)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(given(middle)) < total else (low, middle)
    wanted = given(high)
    found = [math.floor(share + 1e-6) for share in wanted]
    order = sorted(range(len(found)), key=lambda i: found[i] - wanted[i])
    while (left := total - sum(found)) > 0:
        for i in [i for i in order if found[i] < most[i]][:left]:
            found[i] += 1
    return found
