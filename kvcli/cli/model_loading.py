"""The model of a run: checked by name, loaded with progress on stderr, and given its retaining heads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from kvcli.cli.inputs import Inputs, Saved
from kvcli.cli.options import LoadOptions, RunOptions
from kvcli.cli.resident import kept
from kvcli.cli.signals import interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.cli.views.progress import ProgressDisplay, run_with_progress
from kvcli.errors import DamagedError, ModelError
from kvcli.events import Event, Notice, drain
from kvcli.models.default_model import DEFAULT
from kvcli.models.defaults import default_chunk
from kvcli.types import CHUNK
from kvcli.utils import files, process_memory

if TYPE_CHECKING:
    from kvcli.models.model import Model
    from kvcli.models.weights import ModelSource
    from kvcli.recipe import Recipe


@dataclass(frozen=True)
class LoadedModel:
    """A model and what its loading took.

    Attributes:
        model: with its retaining heads.
        load_s: seconds.
        baseline_bytes: memory of the process before the weights; 0 on a GPU.
        facts: of the model, for JSON.
    """

    model: Model
    load_s: float
    baseline_bytes: int
    facts: dict[str, Any]


def check(options: RunOptions) -> Recipe | None:
    """Refuse what can be refused without torch; returns the recipe if one was named.

    Raises:
        UsageError: a recipe, sampling, device or dtype that is not valid.
        ModelError: a model or heads file that does not exist.
    """
    from kvcli.models import defaults, heads_on_disk, resolve

    recipe = options.check()
    resolve.check_name(options.model or resolve.default_name())
    defaults.check_placement(options.device, options.dtype)
    if options.heads is not None:
        heads_on_disk.local(options.heads)
    if options.images or options.image_pages:
        check_reads_pictures(options.model)
    return recipe


def check_reads_pictures(model: str | None) -> None:
    """Refuse pictures for a text model whose config is on this machine. Raises ``ModelError``."""
    from kvcli.models.pictures import require
    from kvcli.models.resolve import default_name, resolve

    if (model or default_name()) == DEFAULT:  # need not be fetched to know that
        require(DEFAULT, {})
    try:
        source = drain(resolve(model, offline=True, only_config=True))
    except ModelError:  # not here yet, or loading says why
        return
    require(source.name, source.config)


def _check_length(inputs: Inputs, recipe: Recipe | None, source: ModelSource) -> None:
    """Refuse a document that is too long for a recipe without eviction or a budget too small, before torch is imported.

    Raises:
        TooLongError, UsageError: with both numbers.
    """
    document, options = inputs.document, inputs.options
    if "torch" in sys.modules or document is None or inputs.saved is not None:
        return
    from kvcli.engine.prompt import Prompt
    from kvcli.models import spec as model_spec
    from kvcli.models.tokenizer import FileTokenizer
    from kvcli.planning import memory

    with suppress(ModelError):  # loading says why
        spec = model_spec.spec(source, device=options.device, dtype=options.dtype, stored=options.weights)
        if options.budget is not None:
            options.budget.units(spec, len(document.text))
        if recipe is not None and recipe.policy.budget is None and len(document.text) > 2 * spec.max_positions:
            prompt = Prompt(FileTokenizer(source.path), system=options.system, raw=options.raw)
            tokens = len(prompt.document(document.text))
            chunk = options.chunk or default_chunk(spec)
            memory.plan_run(spec, recipe, tokens=tokens, chunk=chunk, question=1, answer=1)


def largest_text(options: RunOptions, recipe: Recipe | None) -> int:
    """How many tokens of a text there is room for: by the plan of a recipe that evicts nothing, else by memory."""
    from kvcli.models import spec as model_spec
    from kvcli.models.resolve import resolve
    from kvcli.planning import memory

    spec = None
    if recipe is not None and recipe.policy.budget is None:
        with suppress(ModelError):  # not on this machine yet, or loading says why
            source = drain(resolve(options.model, offline=True))
            spec = model_spec.spec(source, device=options.device, dtype=options.dtype, stored=options.weights)
    chunk = options.chunk or (CHUNK if spec is None else default_chunk(spec))
    return memory.largest_text(spec, recipe, chunk=chunk)


def open_model(options: RunOptions, saved: Saved | None = None, inputs: Inputs | None = None) -> LoadedModel:
    """Load the model, with progress on stderr.

    Raises:
        DamagedError: the saved prefill was made by another model.
        ModelError: the model cannot be loaded.
    """
    quiet = options.quiet
    with interruptible("loading the model"):
        from kvcli.models.resolve import resolve
        from kvcli.models.spec import fingerprint, former_fingerprint

        source = run_with_progress(resolve(options.model, offline=options.offline), quiet=quiet)
        if not quiet:
            row.start(f"loading {source.name}")
        if saved is not None:
            names = (fingerprint(source, options.weights), former_fingerprint(source, options.weights))
            _check_model(saved, *names)
        recipe = options.check()
        if inputs is not None:
            _check_length(inputs, recipe, source)
        _before_loading(quiet=quiet)
        if not quiet:
            row.start(f"loading {source.name}")  # again, after a note
        start = perf_counter()
        shown = inputs is not None and inputs.document is not None and bool(inputs.document.pictures)
        bare = _bare(source, options, pictures=shown)
        model = replace(bare.model)  # heads and calibration are those of this run
        if options.heads is not None or recipe is None or recipe.policy.needs_heads:
            _attach_heads(model, options.heads, offline=options.offline, quiet=quiet)
        load_s = perf_counter() - start
    card = model.heads_card
    heads = None if card is None else {"trained_for": card.model, "steps": card.steps, "made": card.made}
    facts = {**asdict(model.spec), "path": str(source.path), "notes": list(source.notes), "heads": heads}
    if options.verbose:
        for text in (str(source.path), *source.notes):
            terminal.note("source", text, quiet=quiet)
    if options.model is None and source.name == DEFAULT:
        _suggest_once(quiet=quiet)
    spec = model.spec
    kept.facts = {"model": spec.name, "device": spec.device, "dtype": spec.dtype, "weights": options.weights}
    return LoadedModel(model, load_s, 0 if spec.device.startswith("cuda") else bare.baseline_bytes, facts)


def _attach_heads(model: Model, heads: str | None, *, offline: bool, quiet: bool) -> None:
    """Find or download a model's retaining heads, with progress on stderr."""
    from kvcli.retaining_heads.discovery import attach_events

    def see(event: Event) -> None:
        if isinstance(event, Notice):
            terminal.note("heads", event.text, quiet=quiet)
        display.see(event)

    with ProgressDisplay(quiet=quiet) as display, closing(attach_events(model, heads, offline=offline)) as events:
        drain(events, see)


@dataclass(frozen=True)
class _Bare:
    """A model without heads, what is to be said of it, and the memory of the process before its weights."""

    model: Model
    notices: tuple[str, ...]
    baseline_bytes: int


def _bare(source: ModelSource, options: RunOptions, *, pictures: bool) -> _Bare:
    """Load the model, unless an engine has kept it."""

    def load() -> _Bare:
        from kvcli.pipeline import load_model

        notices, before = list[str](), [0]
        model = load_model(
            source,
            device=options.device,
            dtype=options.dtype,
            weights=options.weights,
            pictures=pictures,
            find_heads=False,
            offline=options.offline,
            on_ready=lambda: before.append(process_memory.resident()),
            on_notice=notices.append,
        )
        return _Bare(model, tuple(notices), before[-1])

    key = (source, files.directory_key(source.path), options.device, options.dtype, options.weights, pictures)
    bare = kept.keep("model", key, load)
    for text in bare.notices:
        terminal.note("weights", text, quiet=options.quiet)
    return bare


def _before_loading(*, quiet: bool) -> None:
    """Say that an engine starts; in a process of its own, ask idle engines for the memory they keep."""
    if not kept.active:
        from kvcli.cli.resident import client, sockets

        with suppress(sockets.UnsafeDirectory):
            if sockets.engines():
                client.engines("release")
    elif "torch" not in sys.modules and terminal.is_terminal(sys.stderr):
        terminal.note("starting", "kvcli; the next answer is instant", quiet=quiet)


def _suggest_once(*, quiet: bool) -> None:
    """Tell the user once that there are better models than the default one."""
    marker = files.data_dir() / "model-suggested"
    if not quiet and terminal.is_terminal(sys.stderr) and not marker.exists():
        text = f"{DEFAULT} is small and often wrong; for one that suits this machine: kvcli models suggest"
        terminal.note("model", text)
        with suppress(OSError):  # said again next time
            marker.touch(mode=0o600)


def load_bare(
    options: LoadOptions,
    *,
    quiet: bool,
    weights: str = "bf16",
    heads: str | None = None,
    find_heads: bool = False,
    recipes: Sequence[Recipe] = (),
) -> Model:
    """Load a model without its facts, and what ``recipes`` need beside it.

    Raises:
        ModelError: the model cannot be loaded, or a recipe's heads or calibration do not exist.
    """
    with interruptible("loading the model"):
        from kvcli.models.resolve import resolve

        source = run_with_progress(resolve(options.model, offline=options.offline), quiet=quiet)
        _before_loading(quiet=quiet)
        if not quiet:
            row.start(f"loading {source.name}")
        from kvcli.pipeline import load_model
        from kvcli.retaining_heads import calibration

        model = load_model(
            source,
            device=options.device,
            dtype=options.dtype,
            weights=weights,
            find_heads=False,
            offline=options.offline,
            on_notice=partial(terminal.note, "weights", quiet=quiet),
        )
        if heads is not None or find_heads:
            _attach_heads(model, heads, offline=options.offline, quiet=quiet)
        for recipe in recipes:
            recipe.for_model(model.spec)  # what is missing is said before hours of other recipes
        if recipes and (notice := calibration.attach(model, recipes)):
            terminal.note("queries", notice, quiet=quiet)
        return model


def _check_model(saved: Saved, fingerprint: str, former: str) -> None:
    meta = saved.header.meta
    if meta.identity.model not in (fingerprint, former):
        held = meta.identity.model.partition("-")[2]
        raise DamagedError(
            f"{saved.path} was made by another model: {meta.model} (fingerprint {meta.identity.model},"
            f" not {fingerprint})",
            f"-m {meta.model}" + (f" --weights {held}" if held else ""),
        )
