"""Everything before the first answer: documents, tokens, recipe, prefill. What fails cheaply comes first."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli.cli.inputs import Inputs, document_cache, open_documents
from kvcli.cli.model_loading import LoadedModel, check, largest_text, open_model
from kvcli.cli.options import RunOptions
from kvcli.cli.request import Request, standard_input
from kvcli.cli.resident import kept
from kvcli.cli.signals import INTERRUPTS, DeferredSignals, Interrupted, interruptible
from kvcli.cli.views import quotes, terminal
from kvcli.cli.views.activity import row
from kvcli.cli.views.progress import ProgressDisplay
from kvcli.errors import InputError, ResourceError
from kvcli.events import CacheHit, Checkpoint, Event, Notice, Prefill

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model
    from kvcli.pipeline import DocumentContext, Pipeline, TokenizedDocument
    from kvcli.recipe import Recipe


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
    def prompt(self) -> Prompt:
        """The prompt format, with the document's pictures."""
        return self.pipeline.prompt_for(self.source)

    @property
    def tokens(self) -> int:
        """Tokens of the documents, template included."""
        return 0 if self.source is None else len(self.source.ids)

    @property
    def base(self) -> Path | None:
        """The saved prefill that must be used, if one was named."""
        return None if self.inputs.saved is None else self.inputs.saved.path

    def warn(self, text: str) -> None:
        """Print a warning and remember it."""
        if text not in self.warnings:
            self.warnings.append(text)
        terminal.warn(text, quiet=self.options.quiet)


def open_run(inputs: Inputs, loaded: LoadedModel, *, questions: int, notes: bool = True) -> OpenRun:
    """Tokenize the document and choose the recipe.

    Args:
        inputs, loaded: documents and model.
        questions: how many will be asked; 0 if unknown.
        notes: print the warnings of the document, and what is to know of the model.
    """
    options, quiet = inputs.options, inputs.options.quiet or not notes
    warnings = list(inputs.document.warnings) if inputs.document else []
    for text in warnings:
        terminal.warn(text, quiet=quiet)
    cache = None
    if options.cache and inputs.document is not None:
        from kvcli.prompt_cache.directory import CacheDirectory

        try:
            cache = CacheDirectory.default()
        except ResourceError as error:
            warnings.append(f"the prefill will not be saved: {error.message}")
            terminal.warn(warnings[-1], quiet=quiet)
    pipeline = options.pipeline(loaded.model, cache)
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
    shown = tuple((picture.sha256, picture.page) for picture in document.pictures)
    key = (model.spec.fingerprint, id(model.module), prompt.system, prompt.raw, document.text, shown)
    found = kept.keep("tokens", key, lambda: pipeline.tokenize(document))
    return found if found.document == document else replace(found, document=document)


def open_request(
    options: RunOptions,
    request: Request,
    *,
    questions: int,
    stdin_is_questions: bool = False,
    required: str | None = None,
    early: str | None = None,
) -> OpenRun:
    """Read the documents of a command, load the model and choose the recipe.

    Args:
        options: of the run.
        request: its files.
        questions: how many will be asked; 0 if unknown.
        stdin_is_questions: standard input is not a document.
        required: the hint of the error if there is no document; ``None`` allows that.
        early: a question whose quotes are shown while the model is loaded and the text is read.
    """
    recipe = check(options)
    with interruptible("waiting for standard input"):
        stdin = standard_input(
            request,
            stdin_is_questions=stdin_is_questions,
            quiet=options.quiet,
            tokens=lambda: largest_text(options, recipe),
        )
    inputs = open_documents(options, request.files, stdin)
    if required is not None and inputs.document is None:
        raise InputError("no document was given", required)
    if early is not None and inputs.document is not None:
        show_quotes(inputs.options, inputs.document, early)
    return open_run(inputs, open_model(inputs.options, inputs.saved, inputs), questions=questions)


def show_quotes(options: RunOptions, document: Document, question: str) -> None:
    """Show the likeliest sentences by words above the row, if there is one and the answer will have quotes."""
    if options.quiet or not (options.cite and options.quotes and row.visible and terminal.is_terminal(sys.stdout)):
        return
    from kvcli.retrieval.quotes import QuoteSearch

    row.start("looking up quotes")
    with interruptible("looking up quotes"):
        earlier = [question for question, _ in options.history[-1:]]
        kept = document_cache(options)
        found = QuoteSearch(document, question, earlier, count=options.quotes, kept=kept).quotes()
        quotes.keep_above(document, found, question)


def banner(run: OpenRun, *, reads: bool = True) -> None:
    """One line for the document and one for the model, before prefill; ``reads``: what is kept is said here."""
    spec, document, quiet = run.model.spec, run.document, run.options.quiet
    if document:
        terminal.note("document", f"{terminal.title(document)} · {run.tokens:,} tokens", quiet=quiet)
    stored = spec.dtype if run.options.weights == "bf16" else run.options.weights
    text = [f"{spec.name} {stored}", spec.device]
    if reads:
        text.append(keeping(run) if document else "no document")
    terminal.note("model", " · ".join(text), quiet=quiet)


def keeping(run: OpenRun) -> str:
    """The recipe, and how much it keeps of the document."""
    from kvcli.planning.positions import kept_units

    spec, tokens, recipe = run.model.spec, run.tokens, run.recipe
    kept = max(kept_units(spec, recipe, tokens, i) for i in range(spec.layers))
    shown = recipe if run.options.verbose else terminal.short_recipe(recipe)
    share = f"{kept:,} of {tokens:,} tokens ({terminal.share(kept, tokens)})" if kept < tokens else ""
    return f"{shown} · keeping {share or f'all {tokens:,} tokens'}"


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
    total = run.tokens
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
