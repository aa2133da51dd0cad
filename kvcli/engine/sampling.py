"""Sampling of the next token, on the logits' device and without synchronization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcli.errors import UsageError

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
"""Between them logits divided by the temperature stay finite in float32."""

MIN_SEED, MAX_SEED = -(2**63), 2**64 - 1
"""What torch takes as a seed."""


MAX_PENALTY = 10.0


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Temperature 0 is greedy and ignores the rest but the penalty.

    Args:
        temperature: divides the logits.
        top_k: keep the k most probable tokens.
        top_p: keep the smallest set of most probable tokens with at least this total probability.
        min_p: keep tokens with at least this probability relative to the most probable one.
        seed: of the random generator; ``None`` draws a new one.
        repeat_penalty: divides positive and multiplies negative logits of tokens that the answer has already
            (Keskar et al. 2019, arXiv 1909.05858); 1 for none. It applies at temperature 0 too.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repeat_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"the temperature must be 0, or from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, got {self.temperature}"
            )
        if self.seed is not None and not MIN_SEED <= self.seed <= MAX_SEED:
            raise UsageError(f"the seed must be from {MIN_SEED} to {MAX_SEED}, got {self.seed}")
        if not 1 <= self.repeat_penalty <= MAX_PENALTY:
            raise UsageError(f"the repeat penalty must be from 1 to {MAX_PENALTY:g}, got {self.repeat_penalty}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k must be 1 or more, got {self.top_k}")
        for name, value in (("top-p", self.top_p), ("min-p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, got {value}")

    def generator(self, device: torch.device) -> torch.Generator:
        """Create the random generator of one answer."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


class RepeatPenalty:
    """Makes the tokens of an answer less likely, on the logits' device and without synchronization."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._seen: Tensor | None = None

    def push(self, token: Tensor) -> None:
        """Add a token of the answer, int64 ``[1]``."""
        if self._seen is not None:
            self._seen.index_fill_(0, token, True)

    def apply(self, logits: Tensor) -> Tensor:
        """Penalized ``logits [vocab]``."""
        if self.factor == 1:
            return logits
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
        lower = torch.where(logits > 0, logits / self.factor, logits * self.factor)
        return torch.where(self._seen, lower, logits)


def sample(logits: Tensor, settings: Sampling, generator: torch.Generator) -> Tensor:
    """Sample the next token's id, int64 ``[1]``, from ``logits [vocab]``."""
    if settings.temperature == 0:
        return logits.argmax().view(1)
    logits = logits.float() / settings.temperature
    if settings.top_k is not None:
        kth = torch.topk(logits, min(settings.top_k, logits.shape[0])).values[-1]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if settings.min_p is not None:
        probabilities = torch.softmax(logits, dim=-1)
        logits = logits.masked_fill(probabilities < settings.min_p * probabilities.max(), float("-inf"))
    if settings.top_p is not None:
        ordered, order = torch.softmax(logits, dim=-1).sort(descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        cut = torch.empty_like(order, dtype=torch.bool).scatter_(0, order, before >= settings.top_p)
        logits = logits.masked_fill(cut, float("-inf"))
    # Equal to torch.multinomial, number for number, but without its checks, which synchronize.
    probabilities = torch.softmax(logits, dim=-1)
    return (probabilities / torch.empty_like(probabilities).exponential_(1, generator=generator)).argmax().view(1)
