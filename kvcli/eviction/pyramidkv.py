"""PyramidKV: the question's attention, and less for higher layers (Cai et al. 2024, arXiv 2406.02069)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvcli.eviction.snapkv import Filter, Snapkv


@dataclass(frozen=True, kw_only=True)
class Pyramidkv(Snapkv):
    """Keeps what the question attends to, in budgets that fall linearly from the first layer to the last.

    As published, the last layer keeps 1/20 of the mean budget. The published window of newest tokens is not part of
    the budget here: question and answer are never evicted. A text of less than twice the budget does not fill the first
    layers, and nobody takes over what they leave.

    Args:
        window: maximum number of observing queries.
        pool: width of the filter that smooths scores over neighbours; odd.
        how: the filter: ``max`` or ``mean``.
    """

    name: ClassVar[str] = "pyramidkv"
    pyramid: float = 0.95
    window: int = 8
    pool: int = 7
    how: Filter = "max"

    @property
    def recent(self) -> int:
        """16 units, or a quarter of a small budget, unless ``stabilizers`` is set."""
        return min(16, super().recent) if self.stabilizers is None else self.stabilizers
