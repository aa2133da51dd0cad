"""Training of the feature maps of the fold ``less``: one example per step, model frozen, maps in float32.

A policy's evictions are simulated on an example that was read with full attention, as in the paper. A step makes
attention to the kept units and the state more like full attention, for the last queries. Resumed as
:mod:`kvcli.retaining_heads.trainer` is.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kvcli.cache.folded import term_of
from kvcli.engine.prefill import prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.errors import DamagedError
from kvcli.events import Training, drain
from kvcli.eviction.base import Chunk
from kvcli.eviction.full import Full
from kvcli.fold.less import LessMaps
from kvcli.fold.maps import shapes
from kvcli.models.model import Model
from kvcli.recipe import Recipe, parse
from kvcli.retaining_heads.checkpoint import identity, write
from kvcli.retaining_heads.data import Corpus
from kvcli.storage.dense import Dense
from kvcli_kernels.attention import attention
from kvcli_kernels.merge import merge

_SAVE_EVERY, _QUERIES, _UPDATES = 10, 128, 8  # steps between checkpoints; last queries of an example, and its updates


@dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """Options of a training of feature maps.

    Args:
        steps: number of examples.
        rate: peak learning rate of Adam; it falls to zero linearly.
        budget: units that the policies keep.
        policies: names of policies; they take turns.
        seed: of the initial parameters.
    """

    steps: int = 200
    rate: float = 3e-3
    budget: int = 256
    policies: tuple[str, ...] = ("h2o",)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Recording(Full):
    """Keeps every unit, and each layer's queries, keys and values before RoPE."""

    seen: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)

    def score(self, chunk: Chunk) -> Tensor:
        self.seen.setdefault(chunk.layer, []).append((chunk.q, chunk.new_k, chunk.new_v))
        self.scales[chunk.layer] = chunk.scale
        return super().score(chunk)


@dataclass(frozen=True)
class _Layer:
    """What one layer evicts of an example, and what its last queries get of the rest and of everything."""

    q: Tensor
    k: Tensor
    v: Tensor
    kept: tuple[Tensor, Tensor]
    full: Tensor


def train_fold(
    model: Model, corpus: Corpus, settings: FoldOptions, checkpoint: Path | None = None
) -> Generator[Training, None, tuple[dict[str, Tensor], float]]:
    """Train maps for a model. The call itself loads a checkpoint, before the first step.

    Yields:
        a :class:`Training` after each step; ``overlap`` is the share of the error without a fold that is gone.

    Returns:
        the parameters by name, and that share over the last examples.

    Raises:
        DamagedError: the checkpoint belongs to another training.
    """
    trainer = _Trainer(model, corpus, settings)
    if checkpoint is not None and checkpoint.exists():
        trainer.resume(checkpoint)
    return _steps(trainer, checkpoint)


def _steps(trainer: _Trainer, checkpoint: Path | None) -> Generator[Training, None, tuple[dict[str, Tensor], float]]:
    settings, started, first = trainer.settings, perf_counter(), trainer.step
    while trainer.step < settings.steps:
        loss, gone = trainer.train_step()
        done = trainer.step
        if checkpoint is not None and done % _SAVE_EVERY == 0:
            trainer.save(checkpoint)
        try:
            yield Training(done, settings.steps, loss, gone, None, perf_counter() - started, done - first)
        except GeneratorExit:
            if checkpoint is not None:
                trainer.save(checkpoint)
            raise
    return trainer.parameters, trainer.average


class _Trainer:
    """Maps in training with their optimizer."""

    def __init__(self, model: Model, corpus: Corpus, settings: FoldOptions) -> None:
        self.model, self.corpus, self.settings, self.prompt = model, corpus, settings, Prompt(model.tokenizer)
        self.origin = json.loads(json.dumps(asdict(settings) | {"model": identity(model)} | corpus.origin))
        made = torch.Generator().manual_seed(settings.seed)
        self.parameters: dict[str, Tensor] = {}
        for i, window in enumerate(model.spec.sliding):
            for name, shape in shapes(model.spec.of_layer(i)).items() if window is None else ():
                start = {"a": torch.full(shape, 0.1), "b": torch.full(shape, 0.01)}.get(name)
                if start is None:  # small at first, so that the state adds little
                    start = torch.randn(shape, generator=made) * shape[1] ** -0.5 / (4 if name in ("u1", "w1") else 1)
                self.parameters[f"layers.{i}.{name}"] = start.to(model.device).requires_grad_()
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=settings.rate)
        self.step, self.average = 0, 0.0

    def maps(self) -> LessMaps:
        """The maps as they are."""
        layers: list[dict[str, Tensor]] = [{} for _ in self.model.spec.sliding]
        for name, tensor in self.parameters.items():
            _, layer, part = name.split(".")
            layers[int(layer)][part] = tensor
        return LessMaps(layers)

    def train_step(self) -> tuple[float, float]:
        """Train on the next example; return the error without its first update, and the share that is gone."""
        example = self._example()
        known, first = self.maps(), (0.0, 0.0)
        for update in range(_UPDATES):
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * (1 - self.step / self.settings.steps)
            errors, without = [], []
            for layer, part in example.items():
                size = part.full.square().sum()
                o, _ = merge(part.kept, term_of(known, layer, part.k, part.v, part.q))
                error = (o - part.full).square().sum() / size
                torch.autograd.backward(error)
                errors.append(float(error.detach()))
                without.append(float((part.kept[0] - part.full).square().sum() / size))
            self.optimizer.step()
            self.optimizer.zero_grad()
            if not update:
                first = sum(errors) / len(errors), 1 - sum(errors) / max(1e-9, sum(without))
        self.step += 1
        self.average = first[1] if self.step == 1 else 0.95 * self.average + 0.05 * first[1]
        return first

    def _example(self) -> dict[int, _Layer]:
        """Read the next example in full and under a policy."""
        found, settings = self.corpus.example(self.step), self.settings
        ids = self.prompt.document(found.text)
        for question, answer in found.turns:
            ids = ids + self.prompt.question(question) + self.prompt.answer(answer)
        policy = parse(f"{settings.policies[self.step % len(settings.policies)]}(budget={settings.budget})")
        queries = min(_QUERIES, len(ids) // 4)
        recording = _Recording()
        with torch.inference_mode():
            drain(prefill_steps(self.model, ids, Recipe(recording, Dense())))
            cache = drain(prefill_steps(self.model, ids[:-queries], policy))
        made = {}
        for layer, chunks in recording.seen.items():
            if (count := cache.layers[layer].count) == len(ids) - queries:
                continue
            q, k, v = (torch.cat(parts, dim=1).float() for parts in zip(*chunks, strict=True))
            pos = cache.layers[layer].pos[:, :count].long()
            made[layer] = self._layer(layer, q[:, -queries:], k, v, pos, recording.scales[layer])
        return made

    def _layer(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pos: Tensor, scale: float) -> _Layer:
        kv_heads, n, dim = k.shape
        m = q.shape[1]
        rotate = self.model.rotary.rotate
        q_rotated, k_rotated = rotate(layer, q, range(n - m, n)), rotate(layer, k, range(n))
        kept = torch.zeros(kv_heads, n - m, dtype=torch.bool, device=k.device).scatter_(1, pos, value=True)
        gone = (~kept).nonzero()[:, 1].view(kv_heads, -1, 1).expand(-1, -1, dim)
        index = pos.unsqueeze(2).expand(-1, -1, dim)
        full, _ = attention(q_rotated, k_rotated, v, scale, n - m)
        before = attention(q_rotated, k_rotated.gather(1, index), v.gather(1, index), scale, n)
        newest = attention(q_rotated, k_rotated[:, n - m :], v[:, n - m :], scale, 0)
        parts = q, k.gather(1, gone), v.gather(1, gone), merge(before, newest), full
        clones = [tuple(t.clone() for t in x) if isinstance(x, tuple) else x.clone() for x in parts]
        return _Layer(*clones)  # type: ignore[arg-type]

    def save(self, path: Path) -> None:
        """Save everything that the remaining training depends on."""
        tensors: dict[str, Tensor] = {}
        for name, p in self.parameters.items():
            state = self.optimizer.state[p]
            tensors |= {f"p.{name}": p.detach(), f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
        facts = {"step": self.step, "average": self.average, "origin": self.origin}
        write(path, tensors, {"training": json.dumps(facts)})

    def resume(self, path: Path) -> None:
        """Continue from :meth:`save`.

        Raises:
            DamagedError: the file is not a checkpoint, or of another model, data or options; names what differs.
        """
        try:
            with safe_open(path, "pt", device=str(self.model.device)) as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["training"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                origin = facts["origin"]
        except Exception as error:
            raise DamagedError(f"{path}: not a training checkpoint: {error}", f"rm {path}") from error
        for name, mine in self.origin.items():
            if origin.get(name) != mine:
                raise DamagedError(
                    f"{path}: a training with {name}={origin.get(name)}, not {mine}",
                    f"the same model, files and options again, or rm {path}",
                )
        self.step, self.average = facts["step"], facts["average"]
        for name, p in self.parameters.items():
            p.data.copy_(tensors[f"p.{name}"])
            self.optimizer.state[p] = {
                "step": torch.tensor(float(self.step * _UPDATES)),
                "exp_avg": tensors[f"m.{name}"].clone(),
                "exp_avg_sq": tensors[f"v.{name}"].clone(),
            }
