"""95 % confidence intervals: Wilson's for binary scores, a bootstrap over cases for all others."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_Z = 1.959963984540054
_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean in [0, 1] with its interval; ``low`` and ``high`` are ``None`` for a single case."""

    mean: float
    low: float | None
    high: float | None
    interval: Literal["wilson", "bootstrap"]


def wilson(right: float, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of the share ``right / n``."""
    share, z2 = right / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def estimate(cases: Sequence[Sequence[float]], *, shares: bool = True) -> Estimate:
    """Estimate the mean over all questions; the interval treats the questions of one prefill as one draw.

    Args:
        cases: the scores of each case's questions.
        shares: whether scores of 0 and 1 alone are wrong and right answers; not so for distances.
    """
    scores = [score for case in cases for score in case]
    mean = sum(scores) / len(scores)
    binary = shares and all(score in (0.0, 1.0) for score in scores)
    if binary and (all(len(case) == 1 for case in cases) or len(set(scores)) == 1):
        # If all scores are equal, resampling would claim certainty: each prefill counts once.
        return Estimate(mean, *wilson(mean * len(cases), len(cases)), "wilson")
    if len(cases) < 2:
        return Estimate(mean, None, None, "bootstrap")
    rng = random.Random(0)
    sums = [(sum(case), len(case)) for case in cases]
    means = []
    for _ in range(_DRAWS):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(s for s, _ in drawn) / sum(n for _, n in drawn))
    means.sort()
    return Estimate(mean, means[round(0.025 * _DRAWS)], means[round(0.975 * _DRAWS) - 1], "bootstrap")
