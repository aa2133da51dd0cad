"""A loaded model, and one forward pass into a KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvcli.cache.base import DraftedCache, KVCache, State
from kvcli.errors import ModelError
from kvcli.models import attention, condensed, cpu_linear, rope
from kvcli.models.auto_class import attend_by
from kvcli.models.packed_experts import PackedExperts, StoredExperts
from kvcli.models.pictures import PictureReader
from kvcli.types import ModelSpec, Scorer

Rows = slice | Tensor | None


class OutputHead:
    """A hook before a model's language-model head that keeps some rows. Not all models have ``logits_to_keep``.

    The rows are copied. They are a slice of longer ones, and with a slice's strides torch's linear copies the head's
    whole weight instead: 54 MiB for the default model at every question.
    """

    def __init__(self, head: nn.Module) -> None:
        self._rows: Rows = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, _head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._rows is None:
            return None
        hidden = args[0][:, self._rows]
        return (hidden.clone(memory_format=torch.contiguous_format), *args[1:])

    @contextmanager
    def keeping(self, rows: Rows) -> Iterator[None]:
        """Compute logits of these rows only: a slice, or int64 ``[r]``; ``None`` for all."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    @staticmethod
    def logits(output: Any, rows: Rows) -> Tensor:
        """The rows' logits ``[r, vocab]``, from a model that computed only those, or all if it has no such head."""
        found: Tensor = output.logits[0]
        count = found.shape[0]
        if (
            rows is None
            or (isinstance(rows, Tensor) and count == len(rows))
            or (isinstance(rows, slice) and count == 1)
        ):
            return found
        return found[rows]


@dataclass
class Model:
    """A causal language model whose attention runs through kvcli's KV cache.

    Attributes:
        spec: sizes and names.
        module: the transformers model.
        tokenizer: its tokenizer, or ``None`` for a bare model.
        rotary: its RoPE, applied by the cache.
        eos: token ids that end an answer.
        head: computes the logits that are wanted.
        first_state: the state of its recurrent layers before any token; ``None`` if it has none.
        heads: its retaining heads, if there are any (:mod:`kvcli.retaining_heads.discovery`).
        heads_card: where the heads come from (:class:`kvcli.retaining_heads.checkpoint.HeadsCard`).
        calibration: per layer the second moment of its queries, if it was measured
            (:mod:`kvcli.retaining_heads.calibration`).
        pictures: reads pictures, if the model was loaded with its vision tower.
        lock: held during each forward pass and while a context is frozen, so that threads may share the model.
        reference: context manager in which ``module`` is as transformers made it; for probes and comparisons.
    """

    spec: ModelSpec
    module: PreTrainedModel
    tokenizer: Any
    rotary: rope.ModelRotary
    eos: frozenset[int]
    head: OutputHead = field(repr=False)
    first_state: State | None = field(repr=False)
    _switch: Any = field(repr=False)
    heads: Scorer | None = None
    heads_card: Any = None
    calibration: dict[int, Tensor] = field(default_factory=dict)
    pictures: PictureReader | None = None
    lock: RLock = field(default_factory=RLock, repr=False)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def device(self) -> torch.device:
        return torch.device(self.spec.device)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.spec.dtype)  # type: ignore[no-any-return]

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that one token's forward pass reads: no untied embedding table, and no unused experts."""
        table, head = (m.weight for m in (self.module.get_input_embeddings(), self.module.get_output_embeddings()))
        read = self.spec.weight_bytes - (0 if table is head else int(table.nbytes))
        read -= round(sum(nbytes * (1 - share) for _, nbytes, share in matrices(self.module)))
        return read - cpu_linear.spared_bytes(self.module)

    def empty_state(self) -> State | None:
        """A state of the recurrent layers before any token; ``None`` if there are none."""
        return None if self.first_state is None else self.first_state.copy()

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse tokens that the model has no embedding for: its tokenizer is not its own. Raises ``ModelError``."""
        rows, most = int(self.module.get_input_embeddings().weight.shape[0]), max(ids, default=0)
        if most >= rows:
            raise ModelError(
                f"{self.name}: its tokenizer makes the token {most:,}, and its vocabulary has {rows:,} tokens",
                "a model's directory with the tokenizer that it was trained with",
            )

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, store: KVCache, *, logits: bool | str | Tensor, embeds: Tensor | None = None
    ) -> Tensor | None:
        """One forward pass into a KV cache.

        Args:
            ids: int64 ``[m]``.
            store: a prefill cache or a decode cache.
            logits: ``True`` for the last token's logits ``[vocab]``, ``"all"`` for ``[m, vocab]``, int64 ``[r]`` for
                those of some tokens ``[r, vocab]``. ``False`` gives none: prefill does not need the language-model
                head.
            embeds: ``[m, hidden]``, in the place of the tokens' own embeddings, for pictures.
        """
        batch: dict[str, Any] = {
            **({"input_ids": ids[None]} if embeds is None else {"inputs_embeds": embeds[None]}),
            "position_ids": store.position_ids(len(ids))[None],
            "use_cache": False,
        }
        if (state := store.take_state()) is not None:
            batch["past_key_values"] = state
        rows: Rows = logits if isinstance(logits, Tensor) else None if logits == "all" else slice(-1, None)
        with self.lock, attention.using(store):
            length = getattr(store, "max_position", None)
            if length is not None and self.rotary.length_dependent:
                self.rotary.fix_length(length)
            if self.spec.passes and isinstance(store, DraftedCache):
                self._draft(batch, store, len(ids))
            if logits is False:
                self.module.base_model(**batch)
                return None
            with self.head.keeping(rows):
                scores = self.head.logits(self.module(**batch), rows)
            return scores[-1] if logits is True else scores

    def _draft(self, batch: dict[str, Any], store: DraftedCache, tokens: int) -> None:
        """Make all passes but the last one, which keep nothing, for layers that use the keys of a higher layer."""
        store.begin_passes(tokens)
        store.draft = True
        try:
            for _ in range(condensed.passes(self.spec, tokens) - 1):
                self.module.base_model(**batch)
        finally:
            store.draft = False

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The model with its own attention and its own RoPE."""
        self._switch(False)
        attend_by(self.module, "sdpa" if self.module._supports_sdpa else "eager")
        try:
            yield self.module
        finally:
            attend_by(self.module, attention.NAME)
            self._switch(True)


def matrices(module: Any) -> Iterator[tuple[int, int, float]]:
    """Numbers and bytes of the matrices in a model's layers, and the share of them that one token uses."""
    config = module.config.get_text_config()
    names = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k", "experts_per_token")
    used = next((int(n) for name in names if (n := getattr(config, name, None))), 0)
    for part in module.base_model.modules():
        if isinstance(part, nn.Linear):
            yield part.in_features * part.out_features, part.weight.nbytes, 1.0
        elif isinstance(part, PackedExperts | StoredExperts):
            numbers = part.shape.numel() if isinstance(part, PackedExperts) else 2 * part.packed.numel()
            count = len(part.packed)
            yield numbers, part.packed.nbytes + part.scale.nbytes, min(1.0, (used or count) / count)
        elif hasattr(part, "is_concatenated"):
            for tensor in part.parameters(recurse=False):
                if tensor.dim() == 3:
                    yield tensor.numel(), tensor.nbytes, min(1.0, (used or len(tensor)) / len(tensor))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, and of scales that lie beside them."""
    total = 0
    for parameter in module.parameters():
        extra: Any = parameter
        state = getattr(extra, "quant_state", None)
        for scale in (getattr(extra, "SCB", None), getattr(state, "absmax", None)):
            total += scale.nbytes if isinstance(scale, torch.Tensor) else 0
        total += parameter.nbytes
    if getattr(getattr(module, "config", None), "quantization_config", None) is None:
        return total
    # A checkpoint that came quantised may have its integers and scales as buffers.
    return total + sum(b.nbytes for n, b in module.named_buffers() if not n.endswith("inv_freq"))
