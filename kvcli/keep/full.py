"""Keep everything: the reference that every other policy is measured against."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvcli.keep.base import Chunk, Keep


@dataclass(frozen=True, kw_only=True)
class Full(Keep):
    """Keeps every unit, as the model was trained; memory grows with the document."""

    name: ClassVar[str] = "full"
    budget: None = None

    def score(self, chunk: Chunk) -> Tensor:
        """Nothing is ever evicted, so all scores are 0: ``[H_kv, new]``."""
        return torch.zeros(chunk.k.shape[0], chunk.new, device=chunk.k.device)
