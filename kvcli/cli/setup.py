"""Everything before the first answer: model, tokens, recipe, prefill. What fails cheaply comes first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from kvcli.cli.inputs import Inputs, Saved, open_documents
from kvcli.cli.options import LoadOptions, RunOptions
from kvcli.cli.request import Request, standard_input
from kvcli.cli.resident import held
from kvcli.cli.signals import INTERRUPTS, DeferredSignals, Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.cli.views.progress import ProgressDisplay, run_with_progress
from kvcli.errors import DamagedError, InputError, ModelError, ResourceError
from kvcli.events import CacheHit, Checkpoint, Event, Notice, Prefill, drain
from kvcli.models.catalogue import DEFAULT
from kvcli.types import CHUNK
from kvcli.utils import files, process_memory

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.models.model import Model
    from kvcli.models.source import ModelSource
    from kvcli.pipeline import DocumentContext, Pipeline, TokenizedDocument
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
    from kvcli.models import resolve, spec
    from kvcli.retaining_heads import named

    recipe = options.check()
    resolve.check_name(options.model or resolve.default_name())
    spec.check_placement(options.device, options.dtype)
    if options.heads is not None:
        named.local(options.heads)
    return recipe


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
    from kvcli.models.tokenizer import LightTokenizer
    from kvcli.planning import memory

    with suppress(ModelError):  # loading says why
        spec = model_spec.spec(source, device=options.device, dtype=options.dtype, held=options.weights)
        if options.budget is not None:
            options.budget.units(spec, len(document.text))
        if recipe is not None and recipe.policy.budget is None and len(document.text) > 2 * spec.max_positions:
            prompt = Prompt(LightTokenizer(source.path), system=options.system, raw=options.raw)
            tokens, chunk = len(prompt.document(document.text)), options.chunk or CHUNK
            memory.plan_run(spec, recipe, tokens=tokens, chunk=chunk, question=1, answer=1)


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
        if saved is not None:
            names = (fingerprint(source, options.weights), former_fingerprint(source, options.weights))
            _check_model(saved, *names)
        if inputs is not None:
            _check_length(inputs, options.check(), source)
        _before_loading(quiet=quiet)
        if not quiet:
            row.start(f"loading {source.name}")
        start = perf_counter()
        bare = _bare(source, options)
        model = replace(bare.model)  # heads and calibration are those of this run
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
    held.facts = {"model": spec.name, "device": spec.device, "dtype": spec.dtype, "weights": options.weights}
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
    """A model without heads, what was said while it was loaded, and the memory of the process before."""

    model: Model
    notices: tuple[str, ...]
    baseline_bytes: int


def _bare(source: ModelSource, options: RunOptions) -> _Bare:
    """Load the model, unless an engine has kept it."""

    loaded = list[_Bare]()

    def load() -> _Bare:
        from kvcli.pipeline import load_model

        notices, before = list[str](), list[int]()

        def say(text: str) -> None:
            notices.append(text)
            terminal.note("weights", text, quiet=options.quiet)

        model = load_model(
            source,
            device=options.device,
            dtype=options.dtype,
            weights=options.weights,
            find_heads=False,
            offline=options.offline,
            on_ready=lambda: before.append(process_memory.resident()),
            on_notice=say,
        )
        loaded.append(_Bare(model, tuple(notices), before[0] if before else 0))
        return loaded[0]

    key = (source, held.directory_key(source.path), options.device, options.dtype, options.weights)
    bare = held.keep("model", key, load)
    if not loaded:
        for text in bare.notices:
            terminal.note("weights", text, quiet=options.quiet)
    return bare


def _before_loading(*, quiet: bool) -> None:
    """Say that an engine starts; in a process of its own, ask idle engines for the memory they keep."""
    if not held.active:
        from kvcli.cli.resident import client, place

        with suppress(place.UnsafePlace):
            client.engines("release")
    elif "torch" not in sys.modules and terminal.is_terminal(sys.stderr):
        terminal.note("starting", "kvcli; the next answer is instant", quiet=quiet)


def _suggest_once(*, quiet: bool) -> None:
    """Say to a person, one time, that there are better models than the default one."""
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

        _before_loading(quiet=quiet)
        from kvcli.pipeline import load_model
        from kvcli.retaining_heads import calibration

        model = load_model(
            run_with_progress(resolve(options.model, offline=options.offline), quiet=quiet),
            device=options.device,
            dtype=options.dtype,
            weights=weights,
            find_heads=False,
            offline=options.offline,
            on_notice=partial(terminal.note, "weights", quiet=quiet),
        )
        if heads is not None or find_heads:
            _attach_heads(model, heads, offline=options.offline, quiet=quiet)
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


@dataclass(frozen=True)
class OpenRun:
    """Everything before prefill: documents, model, token ids and recipe.

    Attributes:
        inputs, loaded: the documents and the model.
        pipeline: with the options of the command line.
        source: the tokenized document; ``None`` without one.
        recipe: the one that is used.
        warnings: printed so far; grows.
    """

    inputs: Inputs
    loaded: LoadedModel
    pipeline: Pipeline
    source: TokenizedDocument | None
    recipe: Recipe
    warnings: list[str]

    @property
    def options(self) -> RunOptions:
        return self.inputs.options

    @property
    def model(self) -> Model:
        return self.loaded.model

    @property
    def document(self) -> Document | None:
        return self.inputs.document

    @property
    def base(self) -> Path | None:
        """The saved prefill that must be used, if one was named."""
        return None if self.inputs.saved is None else self.inputs.saved.path

    def warn(self, text: str) -> None:
        """Print a warning and remember it."""
        if text not in self.warnings:
            self.warnings.append(text)
        terminal.warn(text, quiet=self.options.quiet)


def open_run(inputs: Inputs, loaded: LoadedModel, *, questions: int, warn: bool = True) -> OpenRun:
    """Tokenize the document and choose the recipe.

    Args:
        inputs, loaded: documents and model.
        questions: how many will be asked; 0 if unknown.
        warn: print the warnings of the document.
    """
    from kvcli.pipeline import Pipeline

    options, quiet, warnings = inputs.options, inputs.options.quiet, list[str]()
    for text in inputs.document.warnings if inputs.document else ():
        warnings.append(text)
        terminal.warn(text, quiet=quiet or not warn)
    cache = None
    if options.cache and inputs.document is not None:
        from kvcli.prompt_cache.directory import CacheDirectory

        try:
            cache = CacheDirectory.default()
        except ResourceError as error:
            warnings.append(f"the prefill will not be saved: {error.message}")
            terminal.warn(warnings[-1], quiet=quiet)
    pipeline = Pipeline(
        loaded.model,
        options.policy,
        cache=cache,
        budget=options.budget,
        kv_bits=options.kv_bits,
        chunk_size=options.chunk,
        system=options.system,
        raw=options.raw,
        before=options.before,
        after=options.after,
    )
    with interruptible("splitting the document into tokens"):
        source = None if inputs.document is None else _tokenize(pipeline, inputs.document)
    choice = pipeline.choose_recipe(source, questions=questions, saved=not options.rebuild and inputs.saved is None)
    if pipeline.prompt.plain:
        text = "the model has no chat template; it completes the text with an answer of one paragraph"
        terminal.note("prompt", text, quiet=quiet)
    if choice.heads_missing:
        spec = loaded.model.spec
        terminal.note("heads", f"none for {spec.name}; using {choice.recipe.policy.name}", quiet=quiet)
    if choice.calibration:
        terminal.note("queries", choice.calibration, quiet=quiet)
    return OpenRun(inputs, loaded, pipeline, source, choice.recipe, warnings)


def _tokenize(pipeline: Pipeline, document: Document) -> TokenizedDocument:
    """The document's tokens, unless an engine has kept them."""
    model, prompt = pipeline.model, pipeline.prompt
    key = (model.spec.fingerprint, id(model.module), prompt.system, prompt.raw, document.text)
    found = held.keep("tokens", key, lambda: pipeline.tokenize(document))
    return found if found.document == document else replace(found, document=document)


def open_request(
    options: RunOptions,
    request: Request,
    *,
    questions: int,
    stdin_is_questions: bool = False,
    required: str | None = None,
) -> OpenRun:
    """Read the documents of a command, load the model and choose the recipe.

    Args:
        options: of the run.
        request: its files.
        questions: how many will be asked; 0 if unknown.
        stdin_is_questions: standard input is not a document.
        required: the hint of the error if there is no document; ``None`` allows that.
    """
    check(options)
    with interruptible("waiting for standard input"):
        stdin = standard_input(request, stdin_is_questions=stdin_is_questions, quiet=options.quiet)
    inputs = open_documents(options, request.files, stdin)
    if required is not None and inputs.document is None:
        raise InputError("no document was given", required)
    return open_run(inputs, open_model(inputs.options, inputs.saved, inputs), questions=questions)


def banner(run: OpenRun, tokens: int, recipe: Recipe) -> None:
    """One line for the document and one for the model, before prefill."""
    from kvcli.planning.positions import kept_units

    spec, document, quiet = run.model.spec, run.document, run.options.quiet
    if document:
        terminal.note("document", f"{terminal.title(document)} · {tokens:,} tokens", quiet=quiet)
        kept = max(kept_units(spec, recipe, tokens, i) for i in range(spec.layers))
        text = f"{recipe} · keeping {kept:,} of {tokens:,} tokens ({terminal.share(kept, tokens)})"
    else:
        text = "no document"
    held = spec.dtype if run.options.weights == "bf16" else run.options.weights
    terminal.note("model", f"{spec.name} {held} · {spec.device} · {text}", quiet=quiet)


def prefill_with_progress(run: OpenRun, **options: Any) -> DocumentContext:
    """Prefill with progress on stderr; the first Ctrl-C saves what was computed.

    Options are those of :meth:`kvcli.pipeline.Pipeline.prefill_events`.

    Raises:
        Interrupted: with the number of tokens that are saved.
    """
    from kvcli.planning import speed_history
    from kvcli.prompt_cache.prefill import PrefillInterrupted

    signals, warnings = DeferredSignals(), list[str]()
    done = saved = 0
    total = 0 if run.source is None else len(run.source.ids)
    options = {"recipe": run.recipe, "base": run.base, "rebuild": run.options.rebuild, **options}

    def see(event: Event) -> None:
        nonlocal done, saved
        if isinstance(event, CacheHit):
            saved = event.tokens
            whole = event.tokens == event.total
            tokens = terminal.count(event.tokens) + ("" if whole else f" of {terminal.count(event.total)}")
            label = "cached" if whole else "resumed"
            terminal.note(label, f"{tokens} tokens ({event.seconds:.1f} s)", quiet=run.options.quiet)
        elif isinstance(event, Notice):
            if done:
                warnings.append(event.text)  # after the progress bar
            else:
                run.warn(event.text)
        elif isinstance(event, Prefill):
            done = event.done
        elif isinstance(event, Checkpoint):
            saved = event.tokens
        display.see(event)

    if total and not run.options.quiet:
        row.start(f"prefill  0/{total:,} tokens")
    display = ProgressDisplay(quiet=run.options.quiet, device=run.model.spec.device)
    events = run.pipeline.prefill_events(run.source, stop=lambda: signals.cause is not None, **options)
    try:
        with signals, closing(events), display:
            try:
                while True:
                    see(next(events))
            except StopIteration as end:
                context: DocumentContext = end.value
    except PrefillInterrupted as stopped:
        raise _interrupted(stopped.done, stopped.total, stopped.saved, signals.cause) from None
    except INTERRUPTS as stop:
        raise _interrupted(done, total, saved, stop) from None
    finally:
        for text in warnings:
            run.warn(text)
    if context.source is not None:
        read = len(context.source.ids) - context.reused
        speed_history.record(run.model.spec, context.recipe, read=read, read_s=context.prefill_s)
    return context


def _interrupted(done: int, total: int, saved: int, cause: BaseException | None) -> Interrupted:
    kept = f"{saved:,} saved" if saved else "nothing saved"
    hint = "to resume" if saved else "to start again"
    return Interrupted(
        f"interrupted during prefill at {done:,} of {total:,} tokens; {kept}",
        f"run the same command {hint}",
        cause=cause or KeyboardInterrupt(),
    )
