"""Keys and values of a question and its answer, kept for a later question that begins with the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvcli.cache.context import Context
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.generate import new_decode_cache
from kvcli.models.model import Model


@dataclass
class KeptTokens:
    """The tokens after a context that have been through the model. One answer at a time may use them.

    Attributes:
        ids: the tokens.
        cache: their keys and values; ``None`` before the first answer.
        reused: tokens of the last question that were taken from here.
    """

    ids: list[int] = field(default_factory=list)
    cache: DecodeCache | None = None
    reused: int = 0

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes

    def shared(self, context: Context | None, ids: Sequence[int]) -> int:
        """How many first tokens of ``ids`` after a context are here; never all of ``ids``."""
        if self.cache is None or self.cache.context is not context:
            return 0
        pairs = zip(self.ids, ids[:-1], strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.ids), len(ids) - 1))

    def begin(self, model: Model, context: Context | None, ids: Sequence[int]) -> DecodeCache:
        """A decode cache that has the first tokens of ``ids``: ``length`` says how many.

        A storage that selects units selects once for all tokens of a forward pass, so there nothing is used again.
        """
        selects = context is not None and any(layer.selects for layer in context.layers)
        shared, cache = 0 if selects else self.shared(context, ids), self.cache
        if cache is None or not shared:
            cache = new_decode_cache(model, context)
        else:
            cache.rewind(shared)
        self.reused, self.cache, self.ids = cache.length, None, []
        return cache

    def end(self, cache: DecodeCache, ids: Sequence[int]) -> None:
        """Keep a decode cache after an answer; ``ids`` begin with its tokens."""
        with torch.inference_mode():
            cache.trim()
        self.cache, self.ids = cache, list(ids[: cache.length])
