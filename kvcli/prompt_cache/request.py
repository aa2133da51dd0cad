"""What a prefill reads and how, and the key of the saved prefill that results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kvcli.engine.prefill import last_chunk_boundary
from kvcli.models.model import Model
from kvcli.models.pictures import Pictures
from kvcli.prompt_cache.key import FORMAT, CacheKey, digest
from kvcli.recipe import Recipe


@dataclass(frozen=True)
class PrefillRequest:
    """What is to be read, and how.

    Attributes:
        ids: of the text, template head included.
        recipe: which units survive.
        chunk: tokens per forward pass.
        horizon: RoPE positions that prefill and answers will use (:func:`kvcli.engine.prefill.prefill_steps`).
        head: the template's ids before any text.
        text: the document.
        document: its files, pages and warnings, as JSON.
        probe: the question's ids, for policies that read for one question.
        origin: the command that reads.
        system, raw: how the prompt was made.
        ids_digest: of ``ids``, if the caller has it; hashing a long text takes a while.
        pictures: that the ids stand for.
        keep_cache: keep the prefill cache, into which a chat evicts its turns
            (:func:`kvcli.engine.prefill.evict_turns`).
    """

    ids: Sequence[int]
    recipe: Recipe
    chunk: int
    horizon: int
    head: Sequence[int] = ()
    text: str = ""
    document: Any = None
    probe: Sequence[int] = ()
    origin: str = "ask"
    system: str | None = None
    raw: bool = False
    keep_cache: bool = False
    ids_digest: str = ""
    pictures: Pictures | None = None

    @property
    def resume_point(self) -> int:
        """Tokens before the last chunk, whose eviction differs: a longer text can continue from there."""
        return last_chunk_boundary(len(self.ids), self.chunk, self.recipe.policy.tail)


def request_key(model: Model, job: PrefillRequest) -> CacheKey:
    """The key of the prefill of a request by a model."""
    keep, seen = job.recipe.policy, job.pictures
    head = digest(job.head)
    if seen is not None:
        head = hashlib.sha256(f"{head} {seen.digest}".encode()).hexdigest()[:32]
    return CacheKey(
        version=FORMAT,
        model=model.spec.fingerprint,
        dtype=model.spec.dtype,
        template=head,
        recipe=job.recipe.reading,
        heads=_heads(model) if keep.needs_heads else "",
        chunk=job.chunk,
        question=digest(job.probe) if keep.query_aware else "",
        horizon=job.horizon if model.rotary.length_dependent else 0,
        text=job.ids_digest or digest(job.ids),
    )


_HEADS_DIGESTS: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def _heads(model: Model) -> str:
    """Digest of a model's retaining heads: every weight, and how they are applied. Computed once per module."""
    heads: Any = model.heads
    if not isinstance(heads, torch.nn.Module):
        return hashlib.sha256(str(getattr(heads, "activation", "")).encode()).hexdigest()[:32]
    if heads not in _HEADS_DIGESTS:
        total = hashlib.sha256(str(getattr(heads, "activation", "")).encode())
        for name, tensor in sorted(heads.state_dict().items()):
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        _HEADS_DIGESTS[heads] = total.hexdigest()[:32]
    return _HEADS_DIGESTS[heads]
