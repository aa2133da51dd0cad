"""Patterns per head for MInference: found by ``kvcli calibrate --prefill minference``, for ``minference(heads=file)``.

The pattern ``v500s700`` is 500 columns and 700 diagonals that are estimated. The pattern ``a100s800`` is the first 100
keys and the nearest 800 distances, which are fixed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import DamagedError
from kvcli.types import ModelSpec
from kvcli.utils import calibration_file

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = ("a100s800", "v30s800", "v100s750", "v500s700", "v3500s100")
"""The published ones, but for blocks of keys, which the authors' own search replaces by columns and diagonals."""

SKIPPED = 2500
"""The first queries, which do not count in a search, as published."""

COMMAND = "kvcli calibrate --prefill minference TEXT…"
DIGEST = 8
_PATTERN = re.compile(r"([av])(\d{1,7})s(\d{1,7})")


def sizes(patterns: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return columns, diagonals and whether both are fixed, one per head: int64, int64 and bool ``[H]``.

    Raises:
        ValueError: not a pattern.
    """
    import torch

    found = [_PATTERN.fullmatch(text) for text in patterns]
    if not all(found):
        raise ValueError(f"no pattern: {', '.join(map(str, patterns))}")
    kinds, columns, diagonals = zip(*(match.groups() for match in found if match), strict=True)
    vertical, slash = (torch.tensor([int(n) for n in part]) for part in (columns, diagonals))
    return vertical, slash, torch.tensor([kind == "a" for kind in kinds])


def save(spec: ModelSpec, layers: Sequence[Sequence[str]], facts: dict[str, object]) -> Path:
    """Store the patterns of a model, per layer one for each head; none for layers that attend to everything."""
    return calibration_file.save("minference", spec, {"layers": [list(layer) for layer in layers], **facts})


def stored(spec: ModelSpec) -> list[list[str]]:
    """Read the stored patterns of a model.

    Raises:
        ModelError: there are none, or they belong to another model.
        DamagedError: the file has not a pattern for each head.
    """
    command = {"term": "minference(heads=file)", "what": "file of patterns", "command": COMMAND}
    layers = calibration_file.load("minference", spec, "layers", **command)
    try:
        counts = [len(sizes(layer)[0]) if layer else 0 for layer in layers]
        if len(counts) != spec.layers or any(n not in (0, spec.of_layer(i).heads) for i, n in enumerate(counts)):
            raise ValueError(f"{counts} patterns, and the model has {spec.layers:,} layers of {spec.heads:,} heads")
    except (TypeError, ValueError) as error:
        where = calibration_file.path("minference", spec)
        raise DamagedError(f"{where} is not a file of patterns: {error}", COMMAND) from None
    return [list(layer) for layer in layers]


def digest(layers: Sequence[Sequence[str]]) -> str:
    """Return a short digest of patterns, a part of the recipe."""
    return hashlib.sha256(repr([list(layer) for layer in layers]).encode()).hexdigest()[:DIGEST]


class PerHead:
    """Attention with a pattern for each head."""

    def __init__(self, layers: Sequence[Sequence[str]]) -> None:
        self.layers = [sizes(layer) if layer else None for layer in layers]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See :class:`kvcli.sparse_prefill.base.SparsePrefill`."""
        from kvcli.sparse_prefill import vertical_slash
        from kvcli_kernels.attention import causal_attention

        own = self.layers[layer]
        if own is None or bool((own[0] + own[1] >= k.shape[1]).all()):
            return causal_attention(q, k, v, scale)
        return vertical_slash.attend(q, k, v, scale, *(part.to(q.device) for part in own))


class PatternSearch:
    """Attends to everything, and sums the attention weights that each candidate would have kept."""

    def __init__(self, candidates: Sequence[str] = CANDIDATES, skipped: int = SKIPPED) -> None:
        self.candidates, self.skipped = list(candidates), skipped
        self.mass: dict[int, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See :class:`kvcli.sparse_prefill.base.SparsePrefill`."""
        import torch

        from kvcli.sparse_prefill.vertical_slash import BLOCK, chosen, pattern, weights
        from kvcli_kernels.attention import causal_attention

        heads, m, start = q.shape[0], q.shape[1], k.shape[1] - q.shape[1]
        if start + m > self.skipped:
            every = [sizes([text] * heads) for text in self.candidates]
            patterns = [pattern(q, k, scale, *(part.to(q.device) for part in own)) for own in every]
            kept = self.mass.setdefault(layer, torch.zeros(len(every), heads))
            for first in range(max(0, self.skipped - start), m, BLOCK):
                rows = range(start + first, start + min(m, first + BLOCK))
                found = weights(q[:, first : first + BLOCK], k[:, : rows.stop], scale)
                for mass, (columns, diagonals) in zip(kept, patterns, strict=True):
                    mass += (found * chosen(columns, diagonals, rows)[:, None]).sum(dim=(1, 2)).cpu()
        return causal_attention(q, k, v, scale)

    def best(self, layers: int) -> list[list[str]]:
        """Return per layer and head the candidate that kept most; nothing for layers that were not asked."""
        found = {layer: mass.argmax(dim=0).tolist() for layer, mass in self.mass.items()}
        return [[self.candidates[i] for i in found.get(layer, ())] for layer in range(layers)]
