"""``kvcli train -m MODEL DATA…``: retaining heads for a model, resumable."""

import hashlib
import re
import shlex
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from kvcli.cli.options import DEBUG, DEVICE, MODEL, OFFLINE, QUIET
from kvcli.cli.signals import INTERRUPTS, DeferredSignals, Interrupted
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.errors import UsageError
from kvcli.events import Event
from kvcli.utils.version import __version__

T = TypeVar("T")


def command(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA...", help="Prose (.txt) or question-answer records (.jsonl, .json), also .gz."),
    ],
    model: MODEL = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to; by default where ask finds them by itself."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Examples, one a step.")] = 2000,
    rate: Annotated[float, typer.Option("--rate", metavar="R", help="Peak learning rate.")] = 1.5e-3,
    schedule: Annotated[str, typer.Option("--schedule", metavar="NAME", help="cosine or linear.")] = "cosine",
    width: Annotated[int, typer.Option("--width", metavar="N", min=1, help="Hidden units of a head.")] = 256,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="KIND,…",
            help="prob, logit (Locret's) or repeat (KVzip's); of several, each example has one.",
        ),
    ] = "prob",
    loss: Annotated[str, typer.Option("--loss", metavar="KIND", help="ordinal or regression (Locret's).")] = "ordinal",
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="A-B", help="Shortest and longest example, in tokens.")
    ] = "512-2048",
    focus: Annotated[
        float,
        typer.Option(
            "--focus", metavar="P", min=0.0, max=1.0, help="Share of examples with the question in front as well."
        ),
    ] = 0.25,
    detrend: Annotated[
        bool, typer.Option("--detrend/--no-detrend", help="Take the trend along the text out of the labels.")
    ] = True,
    pool: Annotated[
        int, typer.Option("--pool", metavar="N", min=1, help="Neighbours that share a score; odd; 1 is Locret's.")
    ] = 17,
    in_loop: Annotated[
        float, typer.Option("--in-loop", metavar="P", min=0.0, max=1.0, help="Share of examples read with eviction.")
    ] = 0.0,
    budget: Annotated[
        int, typer.Option("--budget", metavar="N", min=16, help="Units kept in validation and with --in-loop.")
    ] = 512,
    check_every: Annotated[
        int, typer.Option("--check-every", metavar="N", min=0, help="Steps between validations; 0 for none.")
    ] = 250,
    patience: Annotated[
        int, typer.Option("--patience", metavar="N", min=0, help="Validations without progress that end it; 0: none.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of weights and data.")] = 0,
    licence: Annotated[str, typer.Option("--licence", metavar="TEXT", help="Of the heads; stands in their card.")] = "",
    restart: Annotated[bool, typer.Option("--restart", help="Forget an interrupted training.")] = False,
    device: DEVICE = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="Of the frozen model.")] = None,
    offline: OFFLINE = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Train Locret's retaining heads for a model.

    Facts are planted in prose and asked for; records bring their own questions. The model stays as it is.
    An interrupted training goes on with the same command.
    """
    for name, value, known in (
        ("--schedule", schedule, ("cosine", "linear")),
        ("--loss", loss, ("ordinal", "regression")),
    ):
        if value not in known:
            raise UsageError(f"{name} {value}: there are {' and '.join(known)}", f"{name} {known[0]}")
    _check(labels, loss)
    if pool % 2 == 0:
        raise UsageError(f"--pool {pool} is even: a score is shared to both sides alike", f"--pool {pool + 1}")
    if not 0 < rate < 1:
        raise UsageError(f"--rate {rate} is no learning rate", "--rate 1.5e-3")
    span = _span(tokens)
    if output is not None and output.suffix != ".safetensors":
        raise UsageError(f"-o {output}: heads are written as safetensors", f"-o {output.with_suffix('.safetensors')}")
    from kvcli.retaining_heads import data as examples

    prose, records = examples.load(data)
    corpus = examples.Corpus(prose, records, tokens=span, focus=focus, seed=seed)

    from kvcli.models.resolve import resolve
    from kvcli.pipeline import load_model
    from kvcli.retaining_heads import checkpoint as file
    from kvcli.retaining_heads import discovery
    from kvcli.retaining_heads.trainer import TrainingOptions, saved, train

    source = run_with_progress(resolve(model, offline=offline), quiet=quiet)
    notice = partial(terminal.note, "weights", quiet=quiet)
    loaded = load_model(source, device=device, dtype=dtype, find_heads=False, on_notice=notice)
    settings = TrainingOptions(
        steps=steps,
        rate=rate,
        schedule=schedule,  # type: ignore[arg-type]
        width=width,
        labels=labels,
        loss=loss,  # type: ignore[arg-type]
        detrend=detrend,
        pool=pool,
        in_loop=in_loop,
        budget=budget,
        check_every=check_every,
        patience=patience,
        seed=seed,
    )
    path = output or discovery.folder() / f"{loaded.name.replace('/', '--')}.safetensors"
    checkpoint = path.with_name(path.name + ".training")
    if restart:
        checkpoint.unlink(missing_ok=True)
    running = train(loaded, corpus, settings, checkpoint)
    terminal.note(
        "train",
        f"{loaded.name} · {terminal.plural(len(prose), 'text')}, {terminal.plural(len(records), 'record')}"
        f" · {terminal.count(steps)} steps"
        + (f" · goes on after {terminal.count(done)}" if (done := saved(checkpoint)) else ""),
        quiet=quiet,
    )
    try:
        with DeferredSignals() as signals:
            heads, metrics = run_with_progress(_until(running, signals), quiet=quiet)
    except INTERRUPTS as stop:
        done = saved(checkpoint)
        kept = f"{terminal.plural(done, 'step')} are in {checkpoint}" if done else "nothing was saved yet"
        raise Interrupted(f"interrupted while training; {kept}", "the same command again", cause=stop) from None
    card = file.HeadsCard(
        model=loaded.name,
        identity=file.identity(loaded),
        activation=heads.activation,
        labels=labels,
        loss=loss,
        steps=int(metrics["step"]),
        seed=seed,
        data=[{"name": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in data],
        licence=licence,
        metrics={k: round(v, 4) for k, v in metrics.items()},
        command=_spoken(data, locals()),
        made=f"{time.strftime('%Y-%m-%d')}, kvcli {__version__}",
    )
    file.save(path, heads, card)
    checkpoint.unlink(missing_ok=True)
    found = f"answers {metrics['answers']:.0%}, " if metrics.get("answers", -1) >= 0 else ""
    terminal.note("heads", f"{discovery.describe(heads, card)} · {found}overlap {metrics['overlap']:.2f}", quiet=quiet)
    print(path)


def _until(steps: Generator[Event, None, T], signals: DeferredSignals) -> Generator[Event, None, T]:
    """``steps`` until a signal arrives; closed between two of them, a training saves itself."""
    while signals.cause is None:
        try:
            event = next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        yield event
    steps.close()
    raise signals.cause


def _check(labels: str, loss: str) -> None:
    kinds = labels.split(",")
    if unknown := [kind for kind in kinds if kind not in ("prob", "logit", "repeat")]:
        raise UsageError(f"--labels {labels}: there are prob, logit and repeat, no {unknown[0]!r}", "--labels prob")
    if loss == "regression" and len(set(kinds)) > 1:
        raise UsageError(f"--loss regression learns values, which {labels} do not share", "--loss ordinal")


def _span(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or not 64 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--tokens {text} is no range of 64 tokens or more", "--tokens 512-2048")
    return int(match[1]), int(match[2])


def _spoken(data: Sequence[Path], given: dict[str, Any]) -> str:
    """The command that makes these heads again, with the names of files and not their places."""
    words = ["kvcli", "train", *[p.name for p in data]]
    defaults = {
        "model": None, "steps": 2000, "rate": 1.5e-3, "schedule": "cosine", "width": 256, "labels": "prob",
        "loss": "ordinal", "tokens": "512-2048", "focus": 0.25, "pool": 17, "in_loop": 0.0, "budget": 512,
        "check_every": 250, "patience": 0, "seed": 0, "licence": "", "dtype": None,
    }  # fmt: skip
    words += [] if given["detrend"] else ["--no-detrend"]
    for name, default in defaults.items():
        if given[name] != default:
            words += ["--" + name.replace("_", "-"), str(given[name])]
    return shlex.join(words)
