"""Training of retaining heads: one example per step, model frozen, heads in float32.

A training is a function of model, data, options and seed. Checkpoints allow it to resume.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass
from math import cos, log, pi
from pathlib import Path
from time import perf_counter
from typing import Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kvcli.cache.context import freeze
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.observer import LabelKind, Observer
from kvcli.engine.prefill import prefill, prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.errors import DamagedError
from kvcli.events import Answer, Training, drain
from kvcli.eviction import smoothing
from kvcli.models.model import Model
from kvcli.recipe import parse
from kvcli.retaining_heads.checkpoint import identity, write
from kvcli.retaining_heads.data import Corpus, Example
from kvcli.retaining_heads.labels import LabelRecorder
from kvcli.retaining_heads.losses import LEVELS, detrended, ordinal, overlap, regression, smooth_labels
from kvcli.retaining_heads.module import RetainingHeads
from kvcli.storage.dense import Dense

_SAVE_EVERY = 50
_PIECE, _LEAD = 2048, 8  # tokens repeated at a time, and tokens of the previous piece before them, as in KVzip


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training.

    Args:
        steps: number of steps, one example each.
        rate: peak learning rate of AdamW.
        schedule: of the rate after a warm-up over the first tenth: a half ``cosine`` or ``linear`` to zero.
        width: hidden units.
        labels: one or more of :data:`kvcli.engine.observer.LabelKind`, separated by commas; each example uses one.
        loss: ``ordinal``: four cumulative classifications (is the unit among the best 1, 3, 10, 30 % of its text?) that
            share one score; or ``regression``: Locret's smooth L1 with its smoothness term.
        detrend: subtract the label's trend along the text. Units near the questions get more attention for their
            position alone; heads that learn this forget the beginning of a long text.
        pool: number of neighbours that share a score and a label, as for ``locret``.
        in_loop: share of examples whose features come from a prefill that evicts by the current heads.
        budget: units kept by such a prefill, and in validation.
        check_every: steps between validations with real answers; 0 for none.
        patience: stop after this many validations without a better result; 0 never stops early.
        seed: of the initial weights and of the data.
    """

    steps: int = 2000
    rate: float = 1.5e-3
    schedule: Literal["cosine", "linear"] = "cosine"
    width: int = 256
    labels: str = "prob"
    loss: Literal["ordinal", "regression"] = "ordinal"
    detrend: bool = True
    pool: int = 17
    in_loop: float = 0.0
    budget: int = 512
    check_every: int = 250
    patience: int = 0
    seed: int = 0

    def kind(self, chance: float) -> LabelKind:
        """Return the label of an example, given a number in [0, 1)."""
        kinds = self.labels.split(",")
        return cast(LabelKind, kinds[int(chance * len(kinds))])


@dataclass(frozen=True)
class TrainingExample:
    """Features and labels of one example: per layer ``[n, F]`` and ``[H_kv, n]`` (or ``None``).

    The first ``head`` units belong to the template, not to the text.
    """

    features: list[Tensor]
    labels: list[Tensor | None]
    head: int


def train(
    model: Model, corpus: Corpus, settings: TrainingOptions, checkpoint: Path | None = None
) -> Generator[Training, None, tuple[RetainingHeads, dict[str, float]]]:
    """Train heads for a model. The call itself loads a checkpoint, before the first step.

    Args:
        model: frozen; its own heads, if any, are not used.
        corpus: the examples.
        settings: see :class:`TrainingOptions`.
        checkpoint: a file to resume from, saved every 50 steps and when the generator is closed.

    Yields:
        a :class:`Training` after each step.

    Returns:
        the best validated heads (the last ones without validation), and their metrics.

    Raises:
        DamagedError: the checkpoint belongs to another training.
    """
    trainer = Trainer(model, settings, corpus)
    if checkpoint is not None and checkpoint.exists():
        trainer.resume(checkpoint)
    return _steps(trainer, model, corpus, checkpoint)


def _steps(
    trainer: Trainer, model: Model, corpus: Corpus, checkpoint: Path | None
) -> Generator[Training, None, tuple[RetainingHeads, dict[str, float]]]:
    settings, prompt = trainer.settings, Prompt(model.tokenizer)
    started, first_step = perf_counter(), trainer.step
    while trainer.step < settings.steps and not trainer.exhausted:
        example = corpus.example(trainer.step)
        heads = trainer.heads if corpus.chance(trainer.step) < settings.in_loop else None
        kind = settings.kind(corpus.chance(trainer.step, "label"))
        loss, overlap = trainer.train_step(make_example(model, prompt, example, settings, heads, kind))
        right = None
        if settings.check_every and trainer.step % settings.check_every == 0:
            right, asked = answers(model, trainer.folded(), prompt, corpus, settings)
            trainer.validate(right, asked)
        if checkpoint is not None and (trainer.step % _SAVE_EVERY == 0 or right is not None):
            trainer.save(checkpoint)
        try:
            yield Training(
                trainer.step, settings.steps, loss, overlap, right, perf_counter() - started, trainer.step - first_step
            )
        except GeneratorExit:
            if checkpoint is not None:
                trainer.save(checkpoint)
            raise
    return trainer.best()


def saved(checkpoint: Path) -> int:
    """Return the number of steps in a checkpoint; 0 without one."""
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as file:
        return int(json.loads(file.metadata()["training"])["step"])


class Trainer:
    """Heads in training with their optimizer: everything that a checkpoint contains.

    Features are divided by their root mean square over the first example; :meth:`folded` moves that into the weights.

    Args:
        model: the model of the heads.
        settings: see :class:`TrainingOptions`.
        corpus: the examples; a checkpoint is valid for this corpus only.
    """

    def __init__(self, model: Model, settings: TrainingOptions, corpus: Corpus) -> None:
        self.settings = settings
        self.origin = asdict(settings) | {"model": identity(model)} | corpus.origin
        self.device = model.device
        spec = model.spec
        self.heads = RetainingHeads.like(spec, width=settings.width, seed=settings.seed).to(self.device)
        self.heads.requires_grad_(True)
        self.levels = nn.Parameter(
            torch.tensor([log(p / (1 - p)) for p in LEVELS], device=self.device)
            .expand(spec.layers, spec.kv_heads, -1)
            .clone()
        )
        self.gain = torch.zeros(spec.layers, max(n for n, _ in self.heads.shapes), device=self.device)
        self.optimizer = torch.optim.AdamW(
            [*self.heads.parameters(), self.levels], lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.since_best = 0
        self.metrics: dict[str, float] = {"answers": -1.0}
        self.best_weights: list[Tensor] = []
        self.average = 0.0

    @property
    def exhausted(self) -> bool:
        return bool(self.settings.patience) and self.since_best >= self.settings.patience

    def train_step(self, example_data: TrainingExample) -> tuple[float, float]:
        """Train on one example; return loss and overlap of predicted and true best tenth, averaged over layers."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self._schedule()
        losses, overlaps = [], []
        trained = [i for i, label in enumerate(example_data.labels) if label is not None]
        for i in trained:
            x, y = example_data.features[i].float(), example_data.labels[i]
            assert y is not None
            y = smooth_labels(y, self.settings.pool)
            if self.settings.detrend:
                y = detrended(y, example_data.head)
            if self.step == 0:
                scale = x[example_data.head :].square().mean(dim=0).sqrt().clamp_min(1e-3)
                self.gain[i, : x.shape[1]] = scale.reciprocal()
            score = smoothing.mean(self.heads(i, x * self.gain[i, : x.shape[1]]), self.settings.pool)
            if self.settings.loss == "ordinal":
                loss = ordinal(score, y, self.levels[i, : len(y)], example_data.head)
            else:
                loss = regression(score, y, len(trained))
            torch.autograd.backward(loss / len(trained))
            losses.append(loss.detach())
            overlaps.append(overlap(score.detach()[:, example_data.head :], y[:, example_data.head :]))
        nn.utils.clip_grad_norm_([*self.heads.parameters(), self.levels], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        mean = float(torch.stack(overlaps).mean())
        self.average = mean if self.step == 1 else 0.98 * self.average + 0.02 * mean
        return float(torch.stack(losses).mean()), mean

    def folded(self) -> RetainingHeads:
        """Return the heads for inference, in their stored dtype."""
        spec = self.heads
        heads = RetainingHeads(spec.shapes, width=spec.width)
        for i, (w1, w2) in enumerate(zip(spec.fc1, spec.fc2, strict=True)):
            heads.fc1[i].data = (w1.detach() * self.gain[i, : w1.shape[1]]).to(torch.bfloat16)
            heads.fc2[i].data = w2.detach().to(torch.bfloat16)
        return heads.requires_grad_(False)

    def validate(self, right: float, asked: int) -> None:
        """Record a validation. Among results within one standard error of the best, the latest wins: it has trained
        most."""
        if right < self.metrics["answers"] - (right * (1 - right) / max(1, asked)) ** 0.5:
            self.since_best += 1
            return
        self.since_best = 0
        self.metrics = {"answers": right, "overlap": self.average, "step": self.step}
        self.best_weights = [p.detach().clone() for p in self.folded().parameters()]

    def best(self) -> tuple[RetainingHeads, dict[str, float]]:
        """Return the best heads and their metrics."""
        heads = self.folded()
        if not self.best_weights or not self.settings.check_every:
            return heads, {"overlap": self.average, "step": self.step}
        for p, best_weights in zip(heads.parameters(), self.best_weights, strict=True):
            p.data = best_weights
        return heads, self.metrics

    def _schedule(self) -> float:
        done = self.step / self.settings.steps
        if done < 0.1:
            return (done + 1 / self.settings.steps) / 0.1
        left = (1 - done) / 0.9
        return left if self.settings.schedule == "linear" else 0.5 - 0.5 * cos(pi * left)

    # --- checkpoints ---

    def save(self, path: Path) -> None:
        """Save everything that the remaining training depends on."""
        tensors = {"gain": self.gain, **{f"best.{i}": t for i, t in enumerate(self.best_weights)}}
        for i, p in enumerate(self._parameters()):
            state = self.optimizer.state[p]
            tensors |= {f"p.{i}": p.detach(), f"m.{i}": state["exp_avg"], f"v.{i}": state["exp_avg_sq"]}
        facts = {
            "step": self.step,
            "since_best": self.since_best,
            "metrics": self.metrics,
            "average": self.average,
            "origin": self.origin,
        }
        write(path, {k: v.contiguous() for k, v in tensors.items()}, {"training": json.dumps(facts)})

    def resume(self, path: Path) -> None:
        """Continue from :meth:`save`. ``steps``, ``check_every`` and ``patience`` may differ.

        Raises:
            DamagedError: the file is not a checkpoint, or of another model, data or options; names what differs.
        """
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                facts = json.loads((file.metadata() or {})["training"])
                origin = facts["origin"]
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise DamagedError(f"{path}: not a training checkpoint: {error}", f"rm {path}") from error
        for name, mine in self.origin.items():
            if name not in ("steps", "check_every", "patience") and origin.get(name) != mine:
                raise DamagedError(
                    f"{path}: a training with {name}={origin.get(name)}, not {mine}",
                    f"the same model, files and options again, or rm {path}",
                )
        self.step, self.since_best = facts["step"], facts["since_best"]
        self.metrics, self.average = facts["metrics"], facts["average"]
        self.gain = tensors["gain"]
        self.best_weights = [tensors[f"best.{i}"] for i in range(sum(k.startswith("best.") for k in tensors))]
        for i, p in enumerate(self._parameters()):
            p.data.copy_(tensors[f"p.{i}"])
            self.optimizer.state[p] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"m.{i}"].clone(),
                "exp_avg_sq": tensors[f"v.{i}"].clone(),
            }

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.heads.parameters(), self.levels]


def make_example(
    model: Model,
    prompt: Prompt,
    example: Example,
    settings: TrainingOptions,
    heads: RetainingHeads | None = None,
    kind: LabelKind = "prob",
) -> TrainingExample:
    """Run the frozen model over one example.

    Args:
        model: the model.
        prompt: its prompt format.
        example: a text and questions.
        settings: budget and pool of a prefill with eviction.
        heads: evict by these heads while recording; ``None`` records features under full attention.
        kind: the label. ``repeat`` has no question, so none precedes its text either.
    """
    first = example.turns[0][0] if example.question_first and kind != "repeat" else None
    ids = prompt.document(example.text, question=first)
    head = len(prompt.document("", question=first))
    recorder = LabelRecorder(model.spec.layers)
    work = _record(model, ids, f"locret(budget={len(ids)}, stabilizers=0)", recorder)
    with torch.inference_mode():
        context = freeze(work, Dense())
        if kind == "repeat":
            pairs = _repeated(prompt, ids[head:])
        else:
            pairs = [(prompt.question(question), prompt.answer(answer)) for question, answer in example.turns]
        sizes = [(len(q), len(a)) for q, a in pairs]
        observer = Observer(model.rotary, context, sizes, kind)
        for some in [pairs] if context.state is None else [[pair] for pair in pairs]:
            observer.restart([(len(q), len(a)) for q, a in some])
            flat = [i for q, a in some for i in q + a]
            model.forward(torch.tensor(flat, device=model.device), observer, logits=False)
    budget = settings.budget
    if heads is not None and len(ids) > budget:
        recorder = LabelRecorder(model.spec.layers, heads)
        fields = f"budget={budget}, stabilizers={budget // 8}, sinks={min(head, budget // 4)}, pool={settings.pool}"
        _record(model, ids, f"locret({fields})", recorder)
    features = [recorder.features(i) for i in range(model.spec.layers)]
    known = [y.clone() if y is not None and model.spec.has_units(i) else None for i, y in enumerate(observer.labels)]
    return TrainingExample(features, known, head)


def _repeated(prompt: Prompt, text: list[int]) -> list[tuple[list[int], list[int]]]:
    """Pair a request to repeat the text with each piece of the text, which starts with the previous piece's end."""
    asked = prompt.question("What does the text say, word for word?")
    return [(asked, text[max(0, i - _LEAD) : i + _PIECE]) for i in range(0, len(text), _PIECE)]


def _record(model: Model, ids: list[int], recipe: str, recorder: LabelRecorder) -> PrefillCache:
    before, model.heads = model.heads, recorder
    try:
        return drain(prefill_steps(model, ids, parse(recipe)))
    finally:
        model.heads = before


def answers(
    model: Model, heads: RetainingHeads, prompt: Prompt, corpus: Corpus, settings: TrainingOptions
) -> tuple[float, int]:
    """Return the share of held-out questions answered right from texts eight budgets long, and their number."""
    before, model.heads = model.heads, heads
    budget = settings.budget
    right = asked = 0
    try:
        for example in corpus.held_out(int(8 * budget), 4):
            ids = prompt.document(example.text)
            sinks = min(len(prompt.document("")), budget // 8)
            fields = f"budget={budget}, stabilizers={min(64, budget // 8)}, sinks={sinks}, pool={settings.pool}"
            cache = new_decode_cache(model, drain(prefill(model, ids, parse(f"locret({fields})"))))
            for question, answer in example.turns:
                cache.rewind()
                events = generate(model, cache, prompt.question(question), max_tokens=24)
                text = next(e.text for e in events if isinstance(e, Answer))
                right += answer.rstrip(".").lower() in text.lower()
                asked += 1
    finally:
        model.heads = before
    return right / max(1, asked), asked
