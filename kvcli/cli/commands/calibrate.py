"""``kvcli calibrate TEXT…`` finds the directions in which a model's queries vary, for the storage ``infinigen``.

With ``--share`` it finds layers that can use another layer's KV pairs, for ``kvsharer``. With ``--prefill`` it finds
patterns for ``minference``."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcli import documents
from kvcli.cli.model_loading import load_bare
from kvcli.cli.option_groups import MAIN, annotation, takes_groups
from kvcli.cli.options import DEBUG, QUIET, LoadOptions
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.errors import ModelError, UsageError
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.models.model import Model


@takes_groups
def command(
    data: Annotated[list[Path], typer.Argument(metavar="TEXT", help="Any text, such as a book.")],
    *,
    model: LoadOptions,
    tokens: Annotated[
        int | None,
        annotation("--tokens N", "Process the first N tokens. Default: 2048; with --prefill 4096.", MAIN, min=16),
    ] = None,
    share: Annotated[
        int | None, annotation("--share N", "Calibrate kvsharer instead: N layers use another layer's KV.", MAIN, min=1)
    ] = None,
    prefill: Annotated[
        str | None, annotation("--prefill minference", "Find a pattern for each head of +minference instead.", MAIN)
    ] = None,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Calibrate a model for the recipe full+infinigen, or with --share for kvsharer.

    Measures the model over the text, once, and saves the result where kvcli ask finds it. By default it measures the
    model's queries. With --prefill minference it finds the patterns of minference(heads=file).
    """
    if prefill not in (None, "minference"):
        raise UsageError(f"--prefill {prefill}: only minference is calibrated", "--prefill minference")
    if prefill and share is not None:
        raise UsageError("--share and --prefill are two calibrations", "one of them, then the other")
    tokens = tokens or (4096 if prefill else 2048)
    document = documents.read(data)
    loaded = load_bare(model, quiet=quiet)
    from kvcli.engine.prompt import Prompt
    from kvcli.retaining_heads import calibration, checkpoint

    ids = Prompt(loaded.tokenizer).document(document.text)[: min(tokens, loaded.spec.max_positions)]
    if prefill:
        _patterns(loaded, ids, _digests(data), quiet=quiet)
        return
    if share is not None:
        _share(loaded, ids, share, _digests(data), quiet=quiet)
        return
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
        data=_digests(data),
        made=_made(),
    )
    calibration.save(where, moments, card)
    terminal.note("queries", f"{len(moments)} layers of {loaded.name} · {len(ids):,} tokens", quiet=quiet)
    print(where)


def _share(model: Model, ids: Sequence[int], count: int, data: list[dict[str, str]], *, quiet: bool) -> None:
    from kvcli.retaining_heads import sharing
    from kvcli.share import maps

    with interruptible("searching"):
        owners, cosine = run_with_progress(sharing.search(model, ids, count), quiet=quiet, device=model.spec.device)
    found = [layer for layer, owner in enumerate(owners) if owner != layer]
    if not found:
        raise ModelError(f"no layer of {model.name} can use another one's KV: no pair leaves its output similar")
    if len(found) < count:
        terminal.warn(f"{len(found):,} layers share and not {count:,}: no further pair is similar enough", quiet=quiet)
    facts = {"cosine": round(cosine, 3), "tokens": len(ids), "data": data, "made": _made()}
    where = maps.save(model.spec, owners, facts)
    layers = ", ".join(f"{layer} from {owners[layer]}" for layer in found)
    terminal.note("sharing", f"layer {layers} · cosine {cosine:.2f} · {len(ids):,} tokens", quiet=quiet)
    print(where)


def _patterns(model: Model, ids: Sequence[int], data: list[dict[str, str]], *, quiet: bool) -> None:
    from kvcli.retaining_heads import prefill_patterns
    from kvcli.sparse_prefill import patterns

    with interruptible("searching"):
        found = run_with_progress(prefill_patterns.search(model, ids), quiet=quiet, device=model.spec.device)
    counts = Counter(text for layer in found for text in layer)
    if not counts:
        raise ModelError(f"all layers of {model.name} have windows or attention sinks, which minference leaves alone")
    where = patterns.save(model.spec, found, {"tokens": len(ids), "data": data, "made": _made()})
    shown = ", ".join(f"{n:,} {text}" for text, n in counts.most_common())
    terminal.note("patterns", f"{shown} of {counts.total():,} heads · {len(ids):,} tokens", quiet=quiet)
    print(where)


def _digests(data: list[Path]) -> list[dict[str, str]]:
    return [{"name": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in data if p.is_file()]


def _made() -> str:
    return f"{time.strftime('%Y-%m-%d')}, kvcli {__version__}"
