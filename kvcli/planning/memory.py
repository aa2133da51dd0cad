"""The memory plan: bytes at the peak of a run, known before prefill."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvcli.errors import ResourceError, TooLongError
from kvcli.eviction.merging import MATCH_QUERIES
from kvcli.planning.positions import check_positions, kept_units
from kvcli.recipe import Recipe
from kvcli.storage.base import StorageBytes
from kvcli.storage.row_codec import transient_nbytes
from kvcli.types import DRAFT, DTYPE_BYTES, ModelSpec
from kvcli.utils.process_memory import available as free_on
from kvcli.utils.process_memory import host_available
from kvcli.utils.sizes import format_bytes

_POSITION = 4  # bytes of an int32 position
_SCORE_AND_POSITION = 4 + _POSITION  # bytes per unit beside key and value: a float32 score and a position

_CAPPED_ROWS = 64  # of kvcli_kernels.attention; a test compares them
_BLOCK, _BLOCKED_KEYS = 128, 8192  # of kvcli_kernels.attention.blocked; a test compares them
# Bytes that oneDNN caches per shape of a product, and the number of shapes. Measured with mallinfo2 on the default
# model: 4.5 MiB for the eight products of each new key length, until key lengths no longer change (docs/results).
_PRODUCT, _REMEMBERED = 9 * 2**16, 1024
# Bytes of main memory per token: its id in Python, the tokenizer's memory (docs/results), and its id for drafts.
TOKEN = 136 + 4
SAMPLE = 20_000  # characters of a long text by which its tokens are estimated
PASSAGES = 3  # default number of passages to re-read; chosen on development cases (docs/log.md)
PASSAGE = 400  # tokens of a long passage, about
_MIN_VISIBLE = 32  # units per KV head that stay visible beside re-read passages
_STATES = 4  # of recurrent layers after a document: the present one, its marks, and a copy of one
_HEAD = 64  # tokens of a template's head, about


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak of a run, by purpose.

    Attributes:
        weights: the model's parameters, and its retaining heads' if the policy uses them.
        prefill: kept units of all layers.
        workspace: keys, values and rotated keys of one layer; keys and values of two layers if the storage offloads.
        answer: question and answer.
        activations: activations of one layer, and one row of logits.
        runtime: other memory that the process keeps on a CPU: freed temporaries, prepared products.
        text: token ids, and the tokenizer's memory, on a CPU.
        host: kept units in host memory beside a GPU, if the storage offloads; not part of ``total``. On a CPU they are
            part of ``prefill``.
        context: size of the frozen context on any device, index included. Not part of the peak, which occurs during
            prefill.
    """

    weights: int
    prefill: int
    workspace: int
    answer: int
    activations: int
    runtime: int = 0
    text: int = 0
    host: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        cache = self.prefill + self.workspace + self.answer + self.activations
        return self.weights + cache + self.runtime + self.text

    def check_devices(self, spec: ModelSpec) -> None:
        """Refuse a plan that does not fit what is free now, on each GPU of the model. Raises as :meth:`check`."""
        for device, layers in Counter(spec.devices or (spec.device,)).items():
            share = layers / len(spec.devices or (spec.device,))
            part = replace(
                self,
                prefill=math.ceil(self.prefill * share),
                answer=math.ceil(self.answer * share),
                host=self.host if device == spec.device else 0,
            )
            part.check(free_on(device), device)

    def check(self, available: int, what: str) -> None:
        """Refuse a plan that does not fit.

        Args:
            available: free bytes on ``what`` for everything but the weights, which are already loaded.
            what: e.g. ``cuda:0`` or ``this machine``.

        Raises:
            ResourceError: with the numbers and the most effective fix.
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
                f" (kept {format_bytes(self.prefill)}, workspace {format_bytes(self.workspace)},"
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
    """Compute the peak memory of prefill over ``tokens`` in chunks, and of ``tail`` further tokens.

    The peak is all layers' kept units, plus one chunk of one layer.

    Args:
        spec: the model.
        recipe: eviction policy and KV storage.
        tokens: length of the document, template head included; 0 for none.
        chunk: tokens per forward pass.
        tail: tokens of question and answer.
        probe: question tokens that follow each chunk, for query-aware policies.
    """
    size, owners, leaders = DTYPE_BYTES[spec.dtype], recipe.share.owners(spec), recipe.share.leaders(spec)
    kept = [kept_units(spec, recipe, tokens, layer) for layer in range(spec.layers)]
    chunk = min(chunk, max(tokens, 1)) + probe
    room = max(kept, default=0) + chunk
    # Keys, values and rotated keys of one layer; of a coded layer only if a policy asks for them.
    codec = recipe.storage.row_codec
    coded_units = [n for n, window in zip(kept, spec.sliding, strict=True) if codec is not None and window is None]
    exact = room if codec is None else max((n for n, w in zip(kept, spec.sliding, strict=True) if w), default=0) + chunk
    undecoded = recipe.policy.scores_are_final and recipe.fold.name == "none"
    workspace_units = exact if undecoded or not coded_units else room
    parts = 5 if recipe.storage.offloads else 3
    workspace = spec.kv_heads * workspace_units * spec.head_dim * size * parts
    if spec.shapes and workspace_units == room:  # the largest layer is not the one that keeps most
        shapes = enumerate(zip(spec.shapes, kept, strict=True))
        workspace = max(kv * dim * (n + chunk) for _, ((_, kv, dim), n) in shapes) * size * parts
    if codec is not None and coded_units:
        workspace += transient_nbytes(spec, codec.width(spec.head_dim), max(coded_units), chunk)
    workspace += _shared_nbytes(spec, recipe, kept, chunk)
    if probe and spec.state_bytes:  # queries, keys and values of all layers wait for the question
        rows = [spec.of_layer(i) for i in range(spec.layers)]
        workspace += sum((own.heads + 2 * own.kv_heads) * own.head_dim for own in rows) * (chunk - probe) * size
    # Residual stream, queries and outputs, the feed-forward's two halves and their product, and one row of logits.
    width = 4 * spec.hidden + 3 * spec.heads * spec.head_dim + 3 * spec.intermediate
    row = spec.vocab * (size + 4)
    drafted = 1 + DRAFT if spec.device == "cpu" else 1  # tokens of a decode step
    activations = max(chunk * width * size + row, drafted * (width * size + row), spec.picture_bytes)
    # A block of logits and its softmax in attention, or logits, mask and softmax of the observing queries.
    group, cpu = spec.heads // spec.kv_heads, spec.device == "cpu"
    attending = 2 * group * min(chunk, _BLOCK) * room * size if cpu and size == 2 else 0
    if spec.capped or (not cpu and spec.head_dim > 256):  # logits, their tanh and weights in float32
        attending = 3 * spec.heads * min(chunk, _CAPPED_ROWS) * room * 4
    if spec.latent:  # keys and values of a head
        attending = max(attending, 2 * spec.head_dim * room * size)
    scoring = 3 * spec.heads * min(chunk, recipe.policy.observers) * room * size
    # Weights of the reference queries of one KV head over old and new units, and their products.
    queries = 2 * MATCH_QUERIES + probe * group if recipe.policy.victims == "match" else 0
    fitting = 4 * queries * (3 * room + 3 * queries) + queries * spec.kv_heads * spec.head_dim * (4 + 2 * size)
    activations += max(attending, scoring, fitting, recipe.sparse_prefill.work_nbytes(spec, room, chunk))
    if recipe.policy.uses_surprise:  # logits of a whole chunk, and a block of them in float32
        activations += spec.vocab * (chunk * size + 64 * 4)
    # The process keeps freed memory, and oneDNN prepares and caches each shape of a product.
    products = 2 * math.ceil(min(room, _BLOCKED_KEYS) / _BLOCK) if cpu and size == 2 else 0
    rows = [spec.of_layer(i) for i in range(spec.layers)]
    metadata = sum(count * own.kv_heads for own, count in zip(rows, kept, strict=True)) * _SCORE_AND_POSITION
    folded = sum(
        recipe.fold.state_nbytes(own)
        for own, count, window in zip(rows, kept, spec.sliding, strict=True)
        if window is None and count < tokens
    )
    statistics = folded + sum(
        recipe.policy.state_nbytes(own, count)
        for i, (own, count, window) in enumerate(zip(rows, kept, spec.sliding, strict=True))
        if window is None and owners[i] == i and leaders[i] == i
    )
    fill = sum(n * rows[i].kv_heads * recipe.storage.unit_nbytes(rows[i], i) for i, n in enumerate(kept))
    host = 0
    final = [kept_units(spec, recipe, tokens, layer, final=True) for layer in range(spec.layers)]
    held = [_held(spec, recipe, layer, count) for layer, count in enumerate(final) if owners[layer] == layer]
    observed = sum(
        recipe.storage.observed_nbytes(rows[i], i, tokens)
        for i, window in enumerate(spec.sliding)
        if window is None and owners[i] == i
    )
    shared = max((part.shared for part in held), default=0)
    if recipe.storage.offloads:
        fill, host = sum(part.device for part in held) + shared, max(fill, sum(part.host for part in held))
        if cpu:
            fill, host = fill + host, 0
    # Freezing first frees the workspace; then one layer at a time exists twice.
    freezing = (
        max((recipe.storage.freeze_peak_nbytes(rows[i], i, n) for i, n in enumerate(kept)), default=0) if tokens else 0
    )
    joined = (recipe.share.join_peak_nbytes(rows[i], n) for i, n in enumerate(kept) if leaders[i] != i)
    freezing = max(freezing, max(joined, default=0) if tokens else 0)
    runtime = activations + min(products, _REMEMBERED) * _PRODUCT if cpu else 0
    workspace = max(workspace, freezing - activations - runtime)
    return Plan(
        weights=spec.weight_bytes
        + spec.mapped_bytes
        - spec.host_weight_bytes
        + (spec.heads_bytes if recipe.policy.needs_heads else 0)
        + recipe.fold.maps_nbytes(spec),
        prefill=fill + metadata + (observed + statistics if tokens else 0) + spec.state_bytes * bool(tokens),
        host=host,
        workspace=workspace,
        answer=tail * sum(row.kv_heads * row.unit_bytes for i, row in enumerate(rows) if owners[i] == i)
        + _STATES * spec.state_bytes,
        activations=activations,
        runtime=runtime,
        context=sum(part.device + part.host for part in held) + shared + folded,
    )


def _shared_nbytes(spec: ModelSpec, recipe: Recipe, kept: list[int], chunk: int) -> int:
    """Return the most bytes of keys, values and rotated keys that layers keep at once for those that borrow them."""
    most, owners = 0, recipe.share.owners(spec)
    numbers = [3 * spec.of_layer(i).kv_heads * spec.of_layer(i).head_dim * (n + chunk) for i, n in enumerate(kept)]
    last = {owner: i for i, owner in enumerate(owners) if owner != i}
    for layer in range(spec.layers):
        most = max(most, sum(numbers[owner] for owner, end in last.items() if owner <= layer <= end))
    down = sum(2 * numbers[i] for i in range(spec.layers) if i in owners[:i])  # of this pass and of the one before
    return (most + down) * DTYPE_BYTES[spec.dtype]


def _stored(spec: ModelSpec, recipe: Recipe, layer: int) -> ModelSpec:
    """Return a layer's sizes in storage; most storages keep latents as keys and as values."""
    own = spec.of_layer(layer)
    unpacked = own.latent and not recipe.storage.keeps_latents and spec.sliding[layer] is None
    return replace(own, latent=False) if unpacked else own


def _held(spec: ModelSpec, recipe: Recipe, layer: int, units: int) -> StorageBytes:
    """Return the bytes of a frozen layer; sliding-window layers are never offloaded."""
    own = _stored(spec, recipe, layer)
    if spec.sliding[layer] is not None:
        return StorageBytes(own.kv_heads * units * own.unit_bytes, 0)
    leaders = recipe.share.leaders(spec)
    if leaders[layer] != layer:
        return StorageBytes(0, 0)  # counted with the lower layer of its pair
    if layer in leaders[layer + 1 :]:
        return recipe.share.pair_size(own, layer, units, recipe.storage)
    return recipe.storage.size(own, layer, units)


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
    """Plan one question about one document; also return the maximum answer length in tokens.

    ``kvcli ask`` and ``kvcli plan`` both call this, so a run uses what was planned.

    Args:
        spec, recipe, tokens, chunk: as for :func:`plan`.
        question: tokens of the question, the template's answer prefix included.
        answer: requested maximum of the answer.
        passages: number of passages to re-read before the question; ``None`` for :func:`default_passages`.

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
    planned = plan(spec, recipe, tokens=tokens, chunk=chunk, tail=tail, probe=probe)
    if extra:
        planned = replace(planned, answer=planned.answer + _visible_nbytes(spec, recipe, tokens))
    return replace(planned, text=TOKEN * tokens if spec.device == "cpu" else 0), longest


def largest_text(spec: ModelSpec | None, recipe: Recipe | None, *, chunk: int) -> int:
    """Return how many tokens of a text a run can take here: in memory, and by the model's positions if those are known.

    Args:
        spec, recipe: ``None`` if they are not known yet; then only the tokens themselves must fit.
        chunk: tokens per forward pass.
    """
    free = host_available()

    def fits(tokens: int) -> bool:
        assert spec is not None
        assert recipe is not None
        try:
            planned, _ = plan_run(spec, recipe, tokens=tokens, chunk=chunk, question=1, answer=1)
        except TooLongError:
            return False
        return planned.total <= free or spec.device != "cpu"

    low, high = 0, free // TOKEN + 1
    if spec is None or recipe is None:
        return high - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_text(text: str, count: Callable[[str], int]) -> None:
    """Refuse a text whose tokens would not fit the memory, from samples of it. ``count`` gives the tokens of a text.

    Raises:
        ResourceError: with the numbers.
    """
    if TOKEN * len(text) <= (free := host_available()):
        return
    samples = [text[at : at + SAMPLE] for at in range(0, len(text), max(SAMPLE, len(text) // 8))]
    tokens = sum(map(count, samples)) * len(text) // sum(map(len, samples))
    if TOKEN * tokens > free:
        raise ResourceError(
            f"not enough memory: the text has about {tokens:,} tokens, which take {format_bytes(TOKEN * tokens)},"
            f" and {format_bytes(free)} is free",
            "name fewer files or pages, or read them apart: kvcli map",
        )


def visible_units(kept: int, read: int) -> int:
    """Return how many kept units per KV head stay visible while passages are re-read.

    All, if at least 1/8 of the text was kept. Otherwise few: the rest distracts small models from the passages.

    Args:
        kept: units per KV head.
        read: tokens of the text.
    """
    return kept if 8 * kept >= read else min(kept, max(_MIN_VISIBLE, kept // 16))


def _visible_nbytes(spec: ModelSpec, recipe: Recipe, tokens: int) -> int:
    """Return the bytes of the visible units, which are a copy unless all are visible."""
    copied = 0
    for layer, window in enumerate(spec.sliding):
        kept = kept_units(spec, recipe, tokens, layer)
        seen = visible_units(kept, tokens)
        own, units = _stored(spec, recipe, layer), 0 if window is not None or seen == kept else min(kept, seen + _HEAD)
        copied += units * own.kv_heads * own.unit_bytes
    return copied


def default_passages(spec: ModelSpec, recipe: Recipe, *, tokens: int, chunk: int, question: int) -> int:
    """Return the default number of passages that ``ask`` re-reads before it answers.

    None if nothing is evicted, or if passages would leave less than half of the free positions to the answer. Arguments
    as for :func:`plan_run`.

    Raises:
        TooLongError: as :func:`check_positions`.
    """
    owners = recipe.share.owners(spec)
    whole = (i for i, window in enumerate(spec.sliding) if window is None and owners[i] == i)
    kept = min((kept_units(spec, recipe, tokens, i) for i in whole), default=tokens)
    if kept >= tokens:
        return 0
    room = check_positions(spec, recipe, tokens=tokens, chunk=chunk, question=question)
    return PASSAGES if room // 2 >= PASSAGES * PASSAGE else 0


def with_resident_cache(plan: Plan, spec: ModelSpec, recipe: Recipe, *, tokens: int) -> Plan:
    """Extend a plan for a prefill cache that stays beside the context: kept units exist in both.

    Args:
        plan: of the run without that.
        spec, recipe, tokens: as for :func:`plan`.
    """
    if recipe.storage.offloads:
        return replace(plan, prefill=2 * plan.prefill, host=2 * plan.host)
    units = (kept_units(spec, recipe, tokens, i) * spec.of_layer(i).kv_heads for i in range(spec.layers))
    return replace(plan, prefill=plan.prefill + plan.context + sum(units) * _POSITION + spec.state_bytes)
