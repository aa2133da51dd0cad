"""``kvcli train DATA…``: retaining heads for a model, or with ``--fold`` the feature maps of a fold."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import typer

from kvcli import registry
from kvcli.cli.model_loading import load_bare
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import LoadOptions, PlainOutput
from kvcli.cli.signals import INTERRUPTS, DeferredSignals, Interrupted
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.errors import UsageError
from kvcli.events import Event
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.models.model import Model
    from kvcli.retaining_heads.data import Corpus

T = TypeVar("T")

DATA = Annotated[
    list[Path],
    typer.Argument(metavar="DATA", help="Prose (.txt) or question-answer records (.jsonl, .json), also .gz."),
]


@dataclass(frozen=True)
class ExampleOptions(OptionGroup):
    """The training examples."""

    PANEL: ClassVar[str] = "Examples"

    tokens: str = option("--tokens A-B", "Shortest and longest example in tokens.", "512-2048")
    question_first: float = option(
        "--question-first P", "Share of examples whose question also precedes the text.", 0.25, min=0.0, max=1.0
    )
    labels: str = option(
        "--labels KIND,…", "prob, logit (Locret's) or repeat (KVzip's). One is drawn at random per example.", "prob"
    )
    detrend: bool = option("--detrend/--no-detrend", "Remove the positional trend from the labels. Default: on.", True)
    pool: int = option("--pool N", "Average scores over N tokens; odd; 1 is Locret's.", 17, min=1)
    in_loop: float = option("--in-loop P", "Share of examples that are read with eviction.", 0.0, min=0.0, max=1.0)
    budget: int = option("--budget N", "KV pairs kept in validation and with --in-loop.", 512, min=16)

    def __post_init__(self) -> None:
        if self.pool % 2 == 0:
            raise UsageError(f"--pool {self.pool} is even; the average must be symmetric", f"--pool {self.pool + 1}")
        kinds = ("prob", "logit", "repeat")
        if unknown := [kind for kind in self.labels.split(",") if kind not in kinds]:
            raise UsageError(
                f"--labels {self.labels}: {unknown[0]!r} is not one of {', '.join(kinds)}", "--labels prob"
            )

    def span(self) -> tuple[int, int]:
        """Fewest and most tokens of an example. Raises ``UsageError``."""
        match = re.fullmatch(r"(\d+)-(\d+)", self.tokens)
        if match is None or not 64 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--tokens {self.tokens}: expected a range from 64 tokens", "--tokens 512-2048")
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class OptimizerOptions(OptionGroup):
    """How the heads are trained."""

    PANEL: ClassVar[str] = "Training"

    steps: int | None = option(
        "--steps N", "Training steps, one example each. Default: 2000; with --fold 200.", None, MAIN, min=1
    )
    rate: float = option("--rate R", "Peak learning rate.", 0.0015)
    schedule: str = option("--schedule NAME", "cosine or linear.", "cosine")
    width: int = option("--width N", "Hidden size of each head.", 256, min=1)
    loss: str = option("--loss KIND", "ordinal or regression (Locret's).", "ordinal")
    check_every: int = option("--check-every N", "Steps between validations; 0 for none.", 250, min=0)
    patience: int = option("--patience N", "Stop after N validations without improvement; 0 for never.", 0, min=0)
    seed: int = option("--seed N", "Random seed of weights and examples.", 0)

    def __post_init__(self) -> None:
        for name, known in (("schedule", ("cosine", "linear")), ("loss", ("ordinal", "regression"))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"--{name} {value}: expected {' or '.join(known)}", f"--{name} {known[0]}")
        if not 0 < self.rate < 1:
            raise UsageError(f"--rate {self.rate} is not between 0 and 1", "--rate 1.5e-3")


@dataclass(frozen=True)
class HeadsOutput(PlainOutput):
    """Where the heads go."""

    output: Path | None = option("-o, --output FILE", "Output file. Default: where ask finds it.", None, MAIN)
    restart: bool = option("--restart", "Start over instead of resuming.", False, MAIN)
    licence: str = option("--licence TEXT", "License to record in the heads file.", "")

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix != ".safetensors":
            hint = f"-o {self.output.with_suffix('.safetensors')}"
            raise UsageError(f"-o {self.output}: the file name must end in .safetensors", hint)


@dataclass(frozen=True)
class FoldTraining(OptionGroup):
    """The training of a fold."""

    PANEL: ClassVar[str] = "Folds"

    fold: str | None = option("--fold NAME", "Train the fold less for recipes with +less instead of heads.", None, MAIN)
    policies: str = option("--policies NAME,…", "With --fold: eviction policies that take turns.", "h2o")

    def __post_init__(self) -> None:
        if self.fold not in (None, "less"):
            raise UsageError(f"--fold {self.fold}: only less is trained", "--fold less")
        names = registry.names("eviction")
        if unknown := [name for name in self.policies.split(",") if name not in names]:
            raise UsageError(f"--policies {self.policies}: unknown eviction policy '{unknown[0]}'", "kvcli recipes")


@takes_groups
def command(
    data: DATA,
    *,
    model: LoadOptions,
    training: OptimizerOptions,
    examples: ExampleOptions,
    fold: FoldTraining,
    output: HeadsOutput,
) -> None:
    """Train retaining heads for a model.

    They score KV pairs for the recipe locret. Examples ask for facts inserted into the prose; records bring their own
    questions. The model itself does not change. With --fold less it trains what +less remembers of evicted KV pairs.
    If training is interrupted, the same command resumes it.
    """
    if training.loss == "regression" and len(set(examples.labels.split(","))) > 1:
        raise UsageError(f"--loss regression needs one kind of label, not {examples.labels}", "--loss ordinal")
    if fold.fold is not None and output.output is not None:
        raise UsageError("-o: a fold is found by its model and has no file of its own", "leave out -o")
    span, quiet = examples.span(), output.quiet
    from kvcli.models import heads_on_disk
    from kvcli.retaining_heads import checkpoint as file
    from kvcli.retaining_heads import data as training_data
    from kvcli.retaining_heads import discovery
    from kvcli.retaining_heads.trainer import TrainingOptions, saved, train

    prose, records = training_data.load(data)
    first = examples.question_first
    corpus = training_data.Corpus(prose, records, tokens=span, question_first=first, seed=training.seed)
    loaded = load_bare(model, quiet=quiet)
    words = _command(data, model, training, examples, output, fold)
    if fold.fold is not None:
        _fold(loaded, corpus, training, examples.budget, fold.policies, output, words)
        return
    given = {**vars(examples), **vars(training)}
    named = {field.name: given[field.name] for field in fields(TrainingOptions)}
    settings = TrainingOptions(**{name: value for name, value in named.items() if value is not None})
    path = output.output or heads_on_disk.folder() / f"{loaded.name.replace('/', '--')}.safetensors"
    checkpoint = path.with_name(path.name + ".training")
    if output.restart:
        checkpoint.unlink(missing_ok=True)
    running = train(loaded, corpus, settings, checkpoint)
    amount = f"{terminal.plural(len(prose), 'text')}, {terminal.plural(len(records), 'record')}"
    resumed = f" · resumed after {terminal.count(done)}" if (done := saved(checkpoint)) else ""
    terminal.note("train", f"{loaded.name} · {amount} · {terminal.count(settings.steps)} steps{resumed}", quiet=quiet)
    heads, metrics = _run(running, checkpoint, quiet=quiet)
    card = file.HeadsCard(
        model=loaded.name,
        identity=file.identity(loaded),
        activation=heads.activation,
        labels=settings.labels,
        loss=settings.loss,
        steps=int(metrics["step"]),
        seed=settings.seed,
        data=[{"name": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in data],
        licence=output.licence,
        metrics={k: round(v, 4) for k, v in metrics.items()},
        command=words,
        made=f"{time.strftime('%Y-%m-%d')}, kvcli {__version__}",
    )
    file.save(path, heads, card)
    checkpoint.unlink(missing_ok=True)
    right = f"answers {metrics['answers']:.0%}, " if metrics.get("answers", -1) >= 0 else ""
    terminal.note("heads", f"{discovery.describe(heads, card)} · {right}overlap {metrics['overlap']:.2f}", quiet=quiet)
    print(path)


def _fold(
    loaded: Model,
    corpus: Corpus,
    training: OptimizerOptions,
    budget: int,
    policies: str,
    output: HeadsOutput,
    words: str,
) -> None:
    from kvcli.fold import maps
    from kvcli.retaining_heads import checkpoint as file
    from kvcli.retaining_heads import discovery
    from kvcli.retaining_heads.fold_training import FoldOptions, train_fold
    from kvcli.retaining_heads.trainer import saved

    names = tuple(policies.split(","))
    if "locret" in names:
        discovery.attach(loaded)
    path = maps.path(loaded.spec)
    checkpoint = path.with_name(path.name + ".training")
    if output.restart:
        checkpoint.unlink(missing_ok=True)
    settings = FoldOptions(rate=training.rate, budget=budget, policies=names, seed=training.seed)
    if training.steps is not None:
        settings = replace(settings, steps=training.steps)
    running = train_fold(loaded, corpus, settings, checkpoint)
    resumed = f" · resumed after {terminal.count(done)}" if (done := saved(checkpoint)) else ""
    about = f"{loaded.name} · fold less · {terminal.count(settings.steps)} steps{resumed}"
    terminal.note("train", about, quiet=output.quiet)
    tensors, gone = _run(running, checkpoint, quiet=output.quiet)
    made = f"{time.strftime('%Y-%m-%d')}, kvcli {__version__}"
    facts = {"model": loaded.name, "command": words, "made": made, "licence": output.licence}
    file.write(path, {name: t.detach().bfloat16().cpu() for name, t in tensors.items()}, facts)
    checkpoint.unlink(missing_ok=True)
    terminal.note("fold", f"{gone:.0%} of the error of {policies} at {budget} KV pairs is gone", quiet=output.quiet)
    print(path)


def _run(running: Generator[Event, None, T], checkpoint: Path, *, quiet: bool) -> T:
    """Train with progress. Raises ``Interrupted``, which says what is saved."""
    from kvcli.retaining_heads.trainer import saved

    try:
        with DeferredSignals() as signals:
            return run_with_progress(_until(running, signals), quiet=quiet)
    except INTERRUPTS as stop:
        done = saved(checkpoint)
        kept = f"{terminal.plural(done, 'step')} saved in {checkpoint}" if done else "nothing saved yet"
        raise Interrupted(
            f"interrupted during training; {kept}", "run the same command to resume", cause=stop
        ) from None


def _until(steps: Generator[Event, None, T], signals: DeferredSignals) -> Generator[Event, None, T]:
    """``steps`` until a signal arrives. Closed between two steps, training saves its checkpoint."""
    while signals.cause is None:
        try:
            event = next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        yield event
    steps.close()
    raise signals.cause


def _command(data: Sequence[Path], *groups: OptionGroup) -> str:
    """The command that trains the same heads, with file names instead of paths."""
    words = ["kvcli", "train", *[path.name for path in data]]
    for group in groups:
        for field in fields(group):
            value: Any = getattr(group, field.name)
            if value == field.default or field.name in ("output", "restart", "quiet", "debug", "device", "offline"):
                continue
            name = field.name.replace("_", "-")
            words += [f"--no-{name}"] if value is False else [f"--{name}", str(value)]
    return shlex.join(words)
