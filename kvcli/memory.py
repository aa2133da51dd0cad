"""The plan: how many bytes a run takes at its peak, known before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from kvcli.errors import ResourceError, TooLongError
from kvcli.recipe import Recipe
from kvcli.types import DTYPE_BYTES, ModelSpec

_SCORE_AND_PLACE = 8  # bytes per unit beside key and value: a float32 score and an int32 place


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak of a run, by what they are for."""

    weights: int
    fill: int
    workspace: int
    tail: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.fill + self.workspace + self.tail + self.activations

    def check(self, available: int, what: str) -> None:
        """Refuse a plan that does not fit.

        Args:
            available: bytes free on ``what`` for everything but the weights, which are loaded by then.
            what: e.g. ``cuda:0`` or ``this machine``.

        Raises:
            ResourceError: with the numbers and the largest fix.
        """
        needed = self.total - self.weights
        if needed > available:
            raise ResourceError(
                f"the cache needs {gib(needed)} beside the weights and {what} has {gib(available)} free"
                f" (kept units {gib(self.fill)}, workspace {gib(self.workspace)}, activations {gib(self.activations)})",
                "a smaller --budget or --chunk-size",
            )


def plan(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, tail: int) -> Plan:
    """Peak memory of reading ``tokens`` in chunks of ``chunk`` and asking with ``tail`` further tokens.

    The peak is all layers' kept units, plus one chunk of one layer.
    """
    size = DTYPE_BYTES[spec.dtype]
    kept = [units(spec, recipe, tokens, layer) for layer in range(spec.layers)]
    chunk = min(chunk, max(tokens, 1))
    room = max(kept, default=0) + chunk
    # Keys and values at hand, and the keys rotated, of one layer.
    workspace = spec.kv_heads * room * spec.head_dim * size * 3
    # The residual stream, queries and outputs, the feed-forward's two halves and their product, and one row of logits.
    width = 4 * spec.hidden + 3 * spec.heads * spec.head_dim + 3 * spec.intermediate
    activations = chunk * width * size + spec.vocab * (size + 4)
    return Plan(
        weights=spec.weight_bytes,
        fill=sum(kept) * spec.kv_heads * (spec.unit_bytes + _SCORE_AND_PLACE),
        workspace=workspace,
        tail=spec.layers * spec.kv_heads * tail * spec.unit_bytes,
        activations=activations,
    )


def units(spec: ModelSpec, recipe: Recipe, tokens: int, layer: int) -> int:
    """Units per KV head that a layer holds after ``tokens``."""
    window = spec.sliding[layer]
    if window is not None:
        return min(tokens, window - 1)
    budget = recipe.keep.units(layer, spec.layers)
    return tokens if budget is None else min(tokens, budget + recipe.keep.tail)


def check_positions(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, question: int) -> int:
    """The room for an answer, in tokens, before positions leave the model's trained window.

    Raises:
        TooLongError: there is none; says what the document needs and which recipe reads it.
    """
    keep = recipe.keep
    slots = max((units(spec, recipe, tokens, i) for i, w in enumerate(spec.sliding) if w is None), default=0)
    if keep.positions == "original" or keep.budget is None:
        slots = tokens
    during = slots if slots == tokens else slots + chunk
    room = spec.max_positions - max(slots + question, during)
    if room < 1:
        if slots == tokens:
            raise TooLongError(
                f"{tokens:,} tokens and a question of {question:,} do not fit the {spec.max_positions:,} positions"
                f" of {spec.name} under '{recipe}'",
                f"--policy 'keydiff(budget={max(1, spec.max_positions // 8)})' reads a text of any length",
            )
        raise TooLongError(
            f"a budget of {slots:,} units, a chunk of {chunk:,} and a question of {question:,} tokens do not fit the"
            f" {spec.max_positions:,} positions of {spec.name}",
            f"--budget {max(1, spec.max_positions // 8)}",
        )
    return room


def available(device: str) -> int:
    """Bytes that can still be taken on a device: free card memory, or RAM that is free or reclaimable."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    return int(psutil.virtual_memory().available)


def gib(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
