"""``kvcli calibrate TEXT…``: directions in which a model's queries vary, for the storage ``infinigen``."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Annotated

import typer

from kvcli import documents
from kvcli.cli.model_loading import load_bare
from kvcli.cli.option_groups import MAIN, annotation, takes_groups
from kvcli.cli.options import DEBUG, QUIET, LoadOptions
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.utils.version import __version__


@takes_groups
def command(
    data: Annotated[list[Path], typer.Argument(metavar="TEXT", help="Any text, such as a book.")],
    *,
    model: LoadOptions,
    tokens: Annotated[int, annotation("--tokens N", "Process the first N tokens.", MAIN, min=16)] = 2048,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Calibrate a model for the recipe full+infinigen.

    Measures the model's queries over the text, once, and saves the result where kvcli ask finds it.
    """
    document = documents.read(data)
    loaded = load_bare(model, quiet=quiet)
    from kvcli.engine.prompt import Prompt
    from kvcli.retaining_heads import calibration, checkpoint

    ids = Prompt(loaded.tokenizer).document(document.text)[: min(tokens, loaded.spec.max_positions)]
    with interruptible("measuring"):
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
    terminal.note("queries", f"{len(moments)} layers of {loaded.name} · {len(ids):,} tokens", quiet=quiet)
    print(where)
