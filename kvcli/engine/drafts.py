"""Drafts of the next tokens, and decode steps that check them (speculative decoding).

Answers about a document repeat its words. The longest suffix of the answer is looked up in the document and in the
prompt. The tokens after it are the draft (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding). The
texts are scanned without an index: 4 bytes per token, 0.1 ms for 100,000 tokens.

A step runs the chosen token and a draft through the model at once. While the tokens chosen afterwards are those of the
draft, the next logits are there already. The engine chooses every token itself, from the same logits and with the same
random numbers as without drafts. So answers are the same, whether greedy or sampled. A sample that differs from the
draft ends it. This is rejection sampling for drafts without probabilities (Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.decode_step import DecodeStep, make_decode_step
from kvcli.models.model import Model
from kvcli.types import DRAFT

Ids = NDArray[np.int32]

_LEAST, _CAREFUL, _MOST = 4, 6, 16  # tokens that must agree: at first, after bad drafts; more are not compared
_PAYS = 1.0  # accepted tokens per draft that its additional rows cost about (docs/log.md)
_MEMORY = 0.7  # weight of earlier drafts in the mean of accepted tokens


def as_ids(ids: Sequence[int] | Ids) -> Ids:
    """Return token ids as drafts are looked up in: 4 bytes each."""
    return np.asarray(ids, np.int32)


class PromptLookup:
    """Looks up drafts for one answer.

    Args:
        document: ids of a text, shared by any number of answers.
        prompt: ids that the answer follows.
        longest: maximum tokens of prompt and answer together.
    """

    def __init__(self, document: Ids, prompt: Sequence[int], longest: int) -> None:
        self._document = document
        self._said = np.empty(max(longest, len(prompt)), np.int32)
        self._length = len(prompt)
        self._said[: len(prompt)] = prompt
        self._accepted = 2 * _PAYS

    def push(self, token: int) -> None:
        """Add a token of the answer."""
        if self._length < len(self._said):
            self._said[self._length] = token
            self._length += 1

    def report(self, accepted: int) -> None:
        """Learn how many tokens of the last draft were right: after bad drafts a longer end must agree."""
        self._accepted = _MEMORY * self._accepted + (1 - _MEMORY) * accepted

    def draft(self, most: int) -> list[int]:
        """Return at most ``most`` tokens that may come next; none if nothing similar was said before."""
        said = self._said[: self._length]
        least = _LEAST if self._accepted >= _PAYS else _CAREFUL
        (long, end), (length, start) = _find(said, said), _find(self._document, said)
        text, start = (said, end) if long >= length else (self._document, start)
        if max(long, length) < least:
            return []
        found: list[int] = text[start : start + most].tolist()
        return found


def _find(text: Ids, said: Ids) -> tuple[int, int]:
    """Find the longest end of ``said`` that ``text`` contains before its last token: its length, and where it ends.

    The last one, if there are several.
    """
    if not len(text) or not len(said):
        return 0, 0
    ends = np.flatnonzero(text[:-1] == said[-1])
    length = 0
    while ends.size:
        last, length = int(ends[-1]) + 1, length + 1
        if length == min(len(said), _MOST):
            break
        ends = ends[ends >= length]
        ends = ends[text[ends - length] == said[-1 - length]]
    return (length, last) if length else (0, 0)


_TIE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 3e-2}
"""A lead of the best logit, in standard deviations of the logits, that rounding may reverse.

Products of several rows add numbers in another order than products of one row. Float32 logits differ by about 1e-5.
"""


def drafts_pay(model: Model, cache: DecodeCache) -> bool:
    """Whether drafted steps are faster and their results the same.

    On a GPU they are not measured. A storage that selects units does it once for all rows of a forward pass. So drafted
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
        plain: the step without drafts.
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
        self.plain: DecodeStep = make_decode_step(model, cache)
        self._draft: list[int] = []
        self._rows: Tensor | None = None
        self._used = 0

    def __call__(self, token: Tensor) -> Tensor:
        chosen = int(token)
        self.lookup.push(chosen)
        if self.knows(chosen):
            self._used += 1
        else:
            self._check_draft(token)
        if self._rows is not None:
            logits = self._rows[self._used]
            if not self.greedy or not near_tie(self.mask(logits), logits, self.model.spec.dtype):
                return logits
            self._rows = None
        self.passes += 1
        return self.plain(token)

    def knows(self, token: int) -> bool:
        """Whether the logits after a token were computed with an earlier draft."""
        return self._rows is not None and self._draft[self._used : self._used + 1] == [token]

    def skip(self, token: int) -> None:
        """Leave out the step of a token whose logits come from elsewhere."""
        self.lookup.push(token)
        self._end_draft()
        self.passes += 1

    def _end_draft(self) -> None:
        if self._rows is not None:
            self.lookup.report(self._used)
            self._rows = None

    def _check_draft(self, token: Tensor) -> None:
        """Run a token and a draft after it, if there is one."""
        self._end_draft()
        self._draft, self._used = self.lookup.draft(min(DRAFT, self.end - self.cache.length - 1)), 0
        if self._draft:
            self.passes += 1
            ids = torch.cat((token, token.new_tensor(self._draft)))
            self._rows = self.model.forward(ids, self.cache, logits="all")


def near_tie(allowed: Tensor, logits: Tensor, dtype: str) -> bool:
    """Whether rounding may decide which of the ``allowed`` logits is the largest: ``-inf`` is excluded from them."""
    first, second = allowed.float().topk(2).values
    return bool(first - second <= _TIE[dtype] * logits.float().std())
