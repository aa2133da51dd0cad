"""Decode steps that check a draft of the next tokens in the same forward pass (speculative decoding).

A step runs the chosen token and a draft through the model at once. While the tokens chosen afterwards are those of the
draft, the next logits are there already. The engine chooses every token itself, from the same logits and with the same
random numbers as without drafts. So answers are the same, whether greedy or sampled: a sample that differs from the
draft ends it, which is rejection sampling for drafts without probabilities (Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.decode_step import DecodeStep, make_decode_step
from kvcli.engine.draft import PromptLookup
from kvcli.models.model import Model
from kvcli.types import DRAFT

_TIE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 3e-2}
"""A lead of the best logit, in standard deviations of the logits, that rounding may reverse.

Products of several rows add numbers in another order than products of one row. Float32 logits differ by about 1e-5.
"""


def drafts_pay(model: Model, cache: DecodeCache) -> bool:
    """Whether drafted steps are faster and their results the same.

    On a GPU they are not measured. A storage that selects units does it once for all rows of a forward pass, so drafted
    rows would attend to other units than single tokens. The state of a recurrent layer cannot forget a wrong draft.
    """
    layers = () if cache.context is None else cache.context.layers
    return model.device.type == "cpu" and not cache.recurrent and not any(layer.selects for layer in layers)


class DraftedStep:
    """Decode steps with drafts; called as any :data:`kvcli.engine.decode_step.DecodeStep`.

    Args:
        model, cache: as for :func:`kvcli.engine.decode_step.make_decode_step`.
        lookup: finds the drafts.
        end: tokens that the cache has room for.
        greedy: decide near-ties with a plain step, so that rounding never changes a greedy answer.
        mask: excludes tokens from logits ``[vocab]``, as the engine will before it chooses.

    Attributes:
        passes: forward passes so far.
    """

    def __init__(
        self,
        model: Model,
        cache: DecodeCache,
        lookup: PromptLookup,
        *,
        end: int,
        greedy: bool,
        mask: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.cache, self.lookup, self.end, self.greedy = model, cache, lookup, end, greedy
        self.mask = mask or (lambda logits: logits)
        self.passes = 0
        self._plain: DecodeStep = make_decode_step(model, cache)
        self._draft: list[int] = []
        self._rows: Tensor | None = None
        self._used = 0

    def __call__(self, token: Tensor) -> Tensor:
        chosen = int(token)
        self.lookup.push(chosen)
        if self._rows is not None and self._draft[self._used : self._used + 1] == [chosen]:
            self._used += 1
        else:
            self._check_draft(token)
        if self._rows is not None:
            logits = self._rows[self._used]
            if not self.greedy or not _near_tie(self.mask(logits), logits, self.model.spec.dtype):
                return logits
            self._rows = None
        self.passes += 1
        return self._plain(token)

    def _check_draft(self, token: Tensor) -> None:
        """Run a token and a draft after it, if there is one."""
        if self._rows is not None:
            self.lookup.report(self._used)
            self._rows = None
        self._draft, self._used = self.lookup.draft(min(DRAFT, self.end - self.cache.length - 1)), 0
        if self._draft:
            self.passes += 1
            ids = torch.cat((token, token.new_tensor(self._draft)))
            self._rows = self.model.forward(ids, self.cache, logits="all")


def _near_tie(allowed: Tensor, logits: Tensor, dtype: str) -> bool:
    first, second = allowed.float().topk(2).values
    return bool(first - second <= _TIE[dtype] * logits.float().std())
