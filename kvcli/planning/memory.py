"""The plan: how many bytes a run takes at its peak, known before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvcli.errors import ResourceError, TooLongError
from kvcli.planning.positions import check_positions, kept_units
from kvcli.recipe import Recipe
from kvcli.storage.base import StorageBytes
from kvcli.storage.row_codec import transient_nbytes
from kvcli.types import DTYPE_BYTES, ModelSpec
from kvcli.utils.process_memory import host_available
from kvcli.utils.sizes import format_bytes

_PLACE = 4  # bytes of an int32 place
_MASS = 4  # bytes per unit of what it has absorbed, if evicted units are merged: a float32
_SCORE_AND_PLACE = 4 + _PLACE  # bytes per unit beside key and value: a float32 score and a place

_BLOCK, _BLOCKED_KEYS = 128, 8192  # of kvcli_kernels.attention.blocked; a test compares them
# What oneDNN keeps for each shape that it has multiplied, and for how many. Measured with mallinfo2 on the default
# model: 4.5 MiB for the eight products of each new key length, until key lengths no longer change (docs/results).
_PRODUCT, _REMEMBERED = 9 * 2**16, 1024
_TOKEN = 136  # of main memory per token: its id in Python, and what the tokenizer leaves behind (docs/results)
PASSAGES = 3  # that are read again where units are forgotten; chosen on development cases (docs/log.md)
PASSAGE = 400  # tokens of the longest of them, about
_IN_SIGHT = 32  # units per KV head, at least, that stay in sight beside them
_HEAD = 64  # tokens of a template's head, about


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak of a run, by what they are for.

    Attributes:
        weights: the model's parameters, and its retaining heads' where the policy scores with them.
        fill: kept units of all layers.
        workspace: keys and values at hand of one layer, of two where the hold offloads, and one layer's keys rotated.
        tail: question and answer.
        activations: what one layer computes with, and one row of logits.
        runtime: what the process holds on to besides, on the CPU: freed temporaries, prepared products.
        text: token ids, and what it took to make them, on the CPU.
        host: kept units in the machine's memory beside a card, where the hold offloads; not part of ``total``. On the
            CPU they are part of ``fill``.
        held: kept units once they are read, as the recipe holds them, index included, wherever they lie. No part of the
            peak, which is while they are read.
    """

    weights: int
    fill: int
    workspace: int
    tail: int
    activations: int
    runtime: int = 0
    text: int = 0
    host: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        cache = self.fill + self.workspace + self.tail + self.activations
        return self.weights + cache + self.runtime + self.text

    def check(self, available: int, what: str) -> None:
        """Refuse a plan that does not fit.

        Args:
            available: bytes free on ``what`` for everything but the weights, which are loaded by then.
            what: e.g. ``cuda:0`` or ``this machine``.

        Raises:
            ResourceError: with the numbers and the largest fix.
        """
        if self.host and self.host > (free := host_available()):
            raise ResourceError(
                f"the KV cache needs {format_bytes(self.host)} of RAM, and {format_bytes(free)} is free",
                "--policy keydiff --budget N",
            )
        needed = self.total - self.weights
        if needed > available:
            raise ResourceError(
                f"not enough memory: the KV cache needs {format_bytes(needed)} besides the weights,"
                f" and {what} has {format_bytes(available)} free"
                f" (kept {format_bytes(self.fill)}, workspace {format_bytes(self.workspace)},"
                f" activations {format_bytes(self.activations)})",
                "use a smaller --budget or --chunk-size",
            )


def plan(
    spec: ModelSpec,
    recipe: Recipe,
    *,
    tokens: int,
    chunk: int,
    tail: int,
    probe: int = 0,
) -> Plan:
    """Peak memory of reading ``tokens`` in chunks of ``chunk`` and asking with ``tail`` further tokens.

    The peak is all layers' kept units, plus one chunk of one layer.

    Args:
        spec: the model.
        recipe: which units survive.
        tokens: of the document, template head included; 0 for none.
        chunk: tokens per forward pass.
        tail: tokens of question and answer.
        probe: tokens of the question that follow each chunk, for policies that read for one.
    """
    size = DTYPE_BYTES[spec.dtype]
    kept = [kept_units(spec, recipe, tokens, layer) for layer in range(spec.layers)]
    chunk = min(chunk, max(tokens, 1)) + probe
    room = max(kept, default=0) + chunk
    # Keys and values at hand and the keys rotated of one layer; of one in codes only where a policy asks for them.
    rows = recipe.storage.row_codec
    coded = [n for n, window in zip(kept, spec.sliding, strict=True) if rows is not None and window is None]
    exact = room if rows is None else max((n for n, w in zip(kept, spec.sliding, strict=True) if w), default=0) + chunk
    at_hand = exact if recipe.policy.scores_are_final or not coded else room
    workspace = spec.kv_heads * at_hand * spec.head_dim * size * (5 if recipe.storage.offloads else 3)
    if rows is not None and coded:
        workspace += transient_nbytes(spec, rows.width(spec.head_dim), max(coded), chunk)
    # The residual stream, queries and outputs, the feed-forward's two halves and their product, and one row of logits.
    width = 4 * spec.hidden + 3 * spec.heads * spec.head_dim + 3 * spec.intermediate
    activations = chunk * width * size + spec.vocab * (size + 4)
    # A block of logits and its softmax while attending, or logits, mask and softmax of the queries that score.
    group, cpu = spec.heads // spec.kv_heads, spec.device == "cpu"
    attending = 2 * group * min(chunk, _BLOCK) * room * size if cpu and size == 2 else 0
    scoring = 3 * spec.heads * min(chunk, recipe.policy.observers) * room * size
    activations += max(attending, scoring)
    # What is freed stays with the process, and each shape of a product is prepared once and remembered.
    products = 2 * math.ceil(min(room, _BLOCKED_KEYS) / _BLOCK) if cpu and size == 2 else 0
    notes = sum(kept) * spec.kv_heads * (_SCORE_AND_PLACE + (_MASS if recipe.policy.victims == "merge" else 0))
    fill, host = sum(count * recipe.storage.unit_nbytes(spec, i) for i, count in enumerate(kept)) * spec.kv_heads, 0
    held = [_held(spec, recipe, layer, count) for layer, count in enumerate(kept)]
    gathered = sum(
        recipe.storage.observed_nbytes(spec, i, tokens) for i, window in enumerate(spec.sliding) if window is None
    )
    shared = max((part.shared for part in held), default=0)
    if recipe.storage.offloads:
        fill, host = sum(part.device for part in held) + shared, max(fill, sum(part.host for part in held))
        if cpu:
            fill, host = fill + host, 0
    # When it is frozen, the workspace is given up first, and then a layer at a time is there twice.
    freezing = (
        max((recipe.storage.freeze_peak_nbytes(spec, i, n) for i, n in enumerate(kept)), default=0) if tokens else 0
    )
    runtime = activations + min(products, _REMEMBERED) * _PRODUCT if cpu else 0
    workspace = max(workspace, freezing - activations - runtime)
    return Plan(
        weights=spec.weight_bytes - spec.host_weight_bytes + (spec.heads_bytes if recipe.policy.needs_heads else 0),
        fill=fill + notes + (gathered if tokens else 0),
        host=host,
        workspace=workspace,
        tail=spec.layers * spec.kv_heads * tail * spec.unit_bytes,
        activations=activations,
        runtime=runtime,
        held=sum(part.device + part.host for part in held) + shared,
    )


def _held(spec: ModelSpec, recipe: Recipe, layer: int, units: int) -> StorageBytes:
    """What a frozen layer takes; one with a window of its own is never offloaded."""
    if spec.sliding[layer] is not None:
        return StorageBytes(spec.kv_heads * units * spec.unit_bytes, 0)
    return recipe.storage.size(spec, layer, units)


def plan_run(
    spec: ModelSpec,
    recipe: Recipe,
    *,
    tokens: int,
    chunk: int,
    question: int,
    answer: int,
    passages: int | None = 0,
) -> tuple[Plan, int]:
    """The plan of one question about one document, and how long its answer may become, in tokens.

    ``kvcli ask`` and ``kvcli plan`` both ask here, so what is planned is what is run.

    Args:
        spec, recipe, tokens, chunk: as for :func:`plan`.
        question: tokens of the question, the turn to answer included.
        answer: tokens that the answer may have at most.
        passages: of the text that are read again before the question; ``None`` for :func:`default_passages`.

    Raises:
        TooLongError: as :func:`check_positions`.
    """
    if passages is None:
        passages = default_passages(spec, recipe, tokens=tokens, chunk=chunk, question=question)
    extra = passages * PASSAGE
    room = check_positions(spec, recipe, tokens=tokens, chunk=chunk, question=question + extra)
    longest = min(answer, room)
    probe = question if tokens and recipe.policy.query_aware else 0
    tail = question + extra + longest
    made = plan(spec, recipe, tokens=tokens, chunk=chunk, tail=tail, probe=probe)
    if extra:
        made = replace(made, tail=made.tail + _sight(spec, recipe, tokens))
    return replace(made, text=_TOKEN * tokens if spec.device == "cpu" else 0), longest


def visible_units(kept: int, read: int) -> int:
    """Units per KV head that stay in sight of those that are kept of a text, while passages of it are read again.

    All where they are a good part of the text; the shreds of a long one would draw a small model away from the
    passages.

    Args:
        kept: units per KV head.
        read: tokens of the text.
    """
    return kept if 8 * kept >= read else min(kept, max(_IN_SIGHT, kept // 16))


def _sight(spec: ModelSpec, recipe: Recipe, tokens: int) -> int:
    """Bytes of what stays in sight, which is a copy where it is not everything."""
    copied = 0
    for layer, window in enumerate(spec.sliding):
        kept = kept_units(spec, recipe, tokens, layer)
        seen = visible_units(kept, tokens)
        copied += 0 if window is not None or seen == kept else min(kept, seen + _HEAD)
    return copied * spec.kv_heads * spec.unit_bytes


def default_passages(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, question: int) -> int:
    """Passages that ``ask`` reads again before it answers, where nobody says how many.

    Some where units are forgotten, as long as half of the room behind the document stays the answer's. Arguments as
    for :func:`plan_run`.

    Raises:
        TooLongError: as :func:`check_positions`.
    """
    kept = min((kept_units(spec, recipe, tokens, i) for i, w in enumerate(spec.sliding) if w is None), default=tokens)
    if kept >= tokens:
        return 0
    room = check_positions(spec, recipe, tokens=tokens, chunk=chunk, question=question)
    return PASSAGES if room // 2 >= PASSAGES * PASSAGE else 0


def with_resident_cache(plan: Plan, spec: ModelSpec, recipe: Recipe, *, tokens: int) -> Plan:
    """The plan of a run whose fill stays beside the context, to be read on in: kept units are there in both.

    Args:
        plan: of the run without that.
        spec, recipe, tokens: as for :func:`plan`.
    """
    if recipe.storage.offloads:
        return replace(plan, fill=2 * plan.fill, host=2 * plan.host)
    places = sum(kept_units(spec, recipe, tokens, layer) for layer in range(spec.layers)) * spec.kv_heads * _PLACE
    return replace(plan, fill=plan.fill + plan.held + places)


def largest_budget(
    spec: ModelSpec,
    recipe: Recipe,
    usable: int,
    *,
    tokens: int,
    chunk: int,
    question: int,
    answer: int,
    passages: int | None = None,
) -> int | None:
    """The largest budget with which a run fits ``usable`` bytes and the model's positions; ``None`` where none does.

    At most ``tokens``, with which nothing is evicted. Arguments as for :func:`plan_run`, but that the answer is to have
    all of its tokens.
    """

    def fits(budget: int) -> bool:
        try:
            made, longest = plan_run(
                spec,
                recipe.with_budget(budget),
                tokens=tokens,
                chunk=chunk,
                question=question,
                answer=answer,
                passages=passages,
            )
        except TooLongError:
            return False
        return made.total <= usable and longest == answer

    least = max(1, recipe.policy.sinks + (recipe.policy.stabilizers or 0))
    if tokens >= least and fits(tokens):
        return tokens
    low, high = least - 1, max(tokens, least)  # the law behind the search: a plan grows with its budget
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low >= least else None
