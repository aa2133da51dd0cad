"""The search of MInference (Jiang et al. 2024, arXiv 2407.02490): which pattern keeps most of each head's attention."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from kvcli.engine.prefill import new_prefill_cache, prefill_steps
from kvcli.errors import InputError
from kvcli.events import Prefill
from kvcli.recipe import parse
from kvcli.sparse_prefill import patterns
from kvcli.types import CHUNK

if TYPE_CHECKING:
    from kvcli.models.model import Model


def search(model: Model, ids: Sequence[int]) -> Generator[Prefill, None, list[list[str]]]:
    """Read a text with full attention and return per layer a pattern for each head.

    Raises:
        InputError: the text is too short.
    """
    if len(ids) <= patterns.SKIPPED:
        raise InputError(
            f"the text has {len(ids):,} tokens, and a search needs more than {patterns.SKIPPED:,}", "--tokens 4096"
        )
    recipe = parse("full")
    cache = new_prefill_cache(model, recipe, len(ids))
    cache.sparse = found = patterns.PatternSearch(skipped=patterns.SKIPPED)
    yield from prefill_steps(model, ids, recipe, chunk=CHUNK, resume=cache)
    return found.best(model.spec.layers)
