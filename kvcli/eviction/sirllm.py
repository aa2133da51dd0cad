"""SirLLM: what surprised the model is kept (Yao et al. 2024, arXiv 2405.12528)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.eviction.base import SURPRISE, Chunk, EvictionPolicy
from kvcli.types import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Sirllm(EvictionPolicy):
    """Keeps the tokens with the smallest probability given the text before them, and the newest; all heads the same.

    A chunk's probabilities exist only after all layers have read it. So its units are scored when the next chunk is
    read, and until then they stay. If a chunk is longer than the budget, only its newest units stay. The first token of
    a chunk gets the chunk's largest score, as the first of a turn does in the paper. Costs the language-model head for
    every token.

    Args:
        decay: factor on all older scores per chunk; 1 for documents, 0.7 to 0.9 for dialogue.
    """

    name: ClassVar[str] = "sirllm"
    scores_are_final: ClassVar[bool] = False
    uses_surprise: ClassVar[bool] = True
    sinks: int = 4
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise UsageError(f"sirllm: decay must be above 0 and at most 1, got {self.decay}", "decay=0.9")

    def rescore(self, chunk: Chunk) -> Tensor:
        """Give the previous chunk's units their score, and new ones infinity: ``[H_kv, kept + new]``."""
        import torch

        late = chunk.state.get(SURPRISE, chunk.scores[0, :0])
        index = chunk.pos[:, : chunk.kept].long() - (chunk.start - len(late))
        scores = chunk.scores * self.decay
        if len(late):
            scores = torch.where(index >= 0, late[index.clamp_min(0)], scores)
        return torch.cat([scores, scores.new_full((scores.shape[0], chunk.new), float("inf"))], dim=1)

    def choose(self, chunk: Chunk, scores: Tensor, budget: int, recent: int) -> Tensor:
        """Keep the chunk too, as far as there is room."""
        ranked = scores.masked_fill(scores == float("inf"), float("-inf"))  # of new units, those are protected that fit
        return super().choose(chunk, ranked, budget, max(recent, min(chunk.new, max(0, budget - self.sinks))))

    def state_nbytes(self, spec: ModelSpec, units: int) -> int:
        """See :meth:`kvcli.eviction.base.EvictionPolicy.state_nbytes`: the last chunk's scores, of the usual length."""
        return super().state_nbytes(spec, units) + 4 * CHUNK
