"""The search of KVSharer (Yang et al. 2024, arXiv 2410.18517) for layers that can use another layer's KV pairs.

Keys after RoPE and values are averaged over short pieces of a text. Pairs of layers are tried, the most unlike first. A
pair stays if the model's last hidden states stay similar to those without sharing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import combinations
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from kvcli.cache.prefill_cache import ChunkStep, PrefillCache
from kvcli.engine.prefill import new_prefill_cache
from kvcli.errors import InputError, UsageError
from kvcli.events import Prefill
from kvcli.recipe import parse
from kvcli.share import maps

if TYPE_CHECKING:
    from kvcli.models.model import Model

PIECE = 64
"""Tokens of one piece."""

SIMILAR = 0.5
"""Least mean cosine of the last hidden states, with and without sharing."""


def search(model: Model, ids: Sequence[int], count: int) -> Generator[Prefill, None, tuple[tuple[int, ...], float]]:
    """Search for ``count`` layers that borrow.

    Args:
        model: a loaded model.
        ids: a text; pieces of :data:`PIECE` tokens are used, and what is left is not.
        count: layers that borrow at the end; fewer if no other pair is similar enough.

    Yields:
        a :class:`Prefill` after each reading of all pieces; its total grows with the pairs that are refused.

    Returns:
        the owners (:meth:`kvcli.share.base.LayerSharing.owners`), and the cosine with them.

    Raises:
        UsageError: the model cannot have so many borrowers.
        InputError: the text is shorter than a piece.
    """
    layers = model.spec.layers
    own = len(set(model.spec.owners or range(layers)))
    least = own - count  # layers that keep their own keys and values
    if not 0 < count < own:
        raise UsageError(f"{count:,} layers cannot borrow: {model.name} has {own:,}", f"1 to {own - 1}")
    pieces = [torch.tensor(ids[i : i + PIECE], device=model.device) for i in range(0, len(ids) - PIECE + 1, PIECE)]
    if not pieces:
        raise InputError(f"the text has {len(ids):,} tokens, and a search needs {PIECE} at least")
    started, owners, cosine = perf_counter(), model.spec.owners or tuple(range(layers)), 1.0
    model.rotary.fix_length(PIECE)
    plain: list[Tensor] = []
    units: list[Tensor] = []
    for piece in pieces:
        cache, hidden = _read(model, piece, owners)
        plain.append(hidden)
        found = [_units(cache, i) for i in range(layers)]
        units = [a + b for a, b in zip(units, found, strict=True)] if units else found
    once = read = len(pieces) * PIECE
    yield Prefill(read, read + count * once, PIECE, perf_counter() - started)
    for layer, owner in _unlike(model, units):
        if owners[layer] != layer or len(set(owners)) == least:
            continue
        tried = maps.resolve([owner if i == layer else o for i, o in enumerate(owners)])
        if not all(maps.alike(model.spec, i, o) for i, o in enumerate(tried)):
            continue
        pairs = zip(plain, (_read(model, piece, tried)[1] for piece in pieces), strict=True)
        mean = sum(float(cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in pairs) / len(pieces)
        if mean > SIMILAR:
            owners, cosine = tried, mean
        read += once
        yield Prefill(read, read + (len(set(owners)) - least) * once, PIECE, perf_counter() - started)
    return owners, cosine


def _unlike(model: Model, units: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Pairs of a layer and a lower one that may share, from the largest distance on."""
    own = sorted(set(model.spec.owners or range(len(units))))
    pairs = [(b, a) for a, b in combinations(own, 2) if maps.alike(model.spec, a, b)]
    return sorted(pairs, key=lambda pair: -float((units[pair[0]] - units[pair[1]]).norm(dim=-1).mean()))


def _units(cache: PrefillCache, index: int) -> Tensor:
    """A layer's keys after RoPE and its values, float32 ``[2 · H_kv, n, D]``."""
    layer = cache.layers[index]
    k = cache.rotary.rotate(index, layer.k[:, : layer.count], range(layer.count))
    return torch.cat([k, layer.v[:, : layer.count]]).float()


@torch.inference_mode()
def _read(model: Model, piece: Tensor, owners: tuple[int, ...]) -> tuple[PrefillCache, Tensor]:
    """Read a piece with shared layers: the cache, and the last hidden states ``[n, hidden]``."""
    cache = new_prefill_cache(model, parse(f"full+kvsharer(map={maps.join(owners)})"), len(piece), chunk=len(piece))
    cache.step = ChunkStep(0, len(piece))
    hidden: list[Tensor] = []

    def note(_head: nn.Module, given: tuple[Tensor, ...]) -> None:
        hidden.append(given[0][0].float())

    hook = model.module.get_output_embeddings().register_forward_pre_hook(note, prepend=True)
    try:
        model.forward(piece, cache, logits=True)
    finally:
        hook.remove()
    return cache, hidden[0]
