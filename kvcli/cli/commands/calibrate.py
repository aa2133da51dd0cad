"""``kvcli calibrate -m MODEL TEXT…``: what a model's queries vary in, measured once for ``infinigen``."""

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kvcli import documents
from kvcli.cli.options import DEBUG, DEVICE, DTYPE, MODEL, OFFLINE, QUIET
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.utils.version import __version__


def command(
    data: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Any text, such as a book.")],
    model: MODEL = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", min=16, help="Read the first N tokens.")] = 2048,
    device: DEVICE = None,
    dtype: DTYPE = None,
    offline: OFFLINE = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Measure a model's queries over a text, for full+infinigen.

    Takes one reading of a few thousand tokens and is kept where ask finds it by itself.
    """
    document = documents.read(data)
    with interruptible("loading the model"):
        from kvcli.engine.prompt import Prompt
        from kvcli.models.resolve import resolve
        from kvcli.pipeline import load_model
        from kvcli.retaining_heads import calibration, checkpoint

        source = run_with_progress(resolve(model, offline=offline), quiet=quiet)
        say = partial(terminal.note, "weights", quiet=quiet)
        loaded = load_model(source, device=device, dtype=dtype, find_heads=False, on_notice=say)
    ids = Prompt(loaded.tokenizer).document(document.text)[: min(tokens, loaded.spec.max_positions)]
    with interruptible("reading"):
        moments = run_with_progress(calibration.measure(loaded, ids), quiet=quiet, device=loaded.spec.device)
    spec, where = loaded.spec, calibration.path(loaded)
    card = calibration.CalibrationCard(
        model=loaded.name,
        identity=checkpoint.identity(loaded),
        layers=spec.layers,
        heads=spec.heads,
        head_dim=spec.head_dim,
        tokens=len(ids),
        data=[{"name": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in data if p.is_file()],
        made=f"{time.strftime('%Y-%m-%d')}, kvcli {__version__}",
    )
    calibration.save(where, moments, card)
    terminal.note("skew", f"{len(moments)} layers of {loaded.name} · {len(ids):,} tokens", quiet=quiet)
    print(where)
