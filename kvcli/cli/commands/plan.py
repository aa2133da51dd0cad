"""``kvcli plan FILE…``: memory, disk and time of a run; loads no model and imports no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from kvcli import documents, types
from kvcli import recipe as recipes
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    DEBUG,
    FILES,
    JSON,
    QUIET,
    DocumentOptions,
    ModelOptions,
    PictureOptions,
    PolicyOptions,
    PromptOptions,
    RunOptions,
)
from kvcli.cli.request import require_utf8
from kvcli.cli.views import plan, terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.documents.document import document_json
from kvcli.errors import InputError, ModelError, UsageError
from kvcli.models.defaults import default_chunk
from kvcli.planning.estimate import Target, Workload, forecast
from kvcli.retaining_heads import published
from kvcli.types import ANSWER_TOKENS, QUESTION_TOKENS
from kvcli.utils.sizes import parse_tokens

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.models.pictures import PictureReader
    from kvcli.models.weights import ModelSource
    from kvcli.recipe import Recipe
    from kvcli.retaining_heads.published import PublishedHeads
    from kvcli.types import ModelSpec


@dataclass(frozen=True)
class PlanOptions(OptionGroup):
    """The run that is estimated."""

    PANEL: ClassVar[str] = "Run"

    gpu: str | None = option("--gpu NAME|SIZE", "Plan for this GPU: 4090, 3060 or 8GB.", None, MAIN)
    tokens: int | None = option(
        "--tokens N", "Assume a document of N tokens: 8192, 100K or 1M.", None, MAIN, parser=parse_tokens
    )
    what_if: list[str] | None = option("--what-if RECIPE", "Compare with this recipe; repeatable.", None, MAIN)
    question: str | None = option("-e, --question TEXT", "The question. Default: 256 tokens.")
    max_tokens: int = option("-n, --max-tokens N", "Longest answer in tokens.", ANSWER_TOKENS, min=1)


@takes_groups
def command(
    files: FILES = None,
    *,
    run: PlanOptions,
    model: ModelOptions,
    document: DocumentOptions,
    pictures: PictureOptions,
    policy: PolicyOptions,
    prompt: PromptOptions,
    as_json: JSON = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Estimate memory, disk space and time of a run. Loads no model.

    The estimate uses the arithmetic of kvcli ask. Times are medians of earlier runs on this machine. Exits with 5 if
    the run does not fit the memory, with 6 if it does not fit the model's context length.
    """
    if run.gpu is not None and model.device is not None:
        raise UsageError("--gpu plans for another machine and --device for this one", "leave out --device")
    groups, settings = (document, pictures, policy, prompt), policy.settings()
    options = RunOptions.of(*groups, offline=model.offline, quiet=quiet, from_quotes=None)
    named, others = _recipes(policy, run.what_if or [])
    target = None if run.gpu is None else Target.gpu(run.gpu)
    if options.images or options.image_pages:
        from kvcli.cli.model_loading import check_reads_pictures

        check_reads_pictures(model.model)
    text = _document(list(files or []), run.tokens, options)

    shown = bool(text and text.pictures)
    source, spec = _spec(model, target, quiet=quiet, pictures=shown)
    reader = None
    if shown:
        from kvcli.models.pictures import PictureReader

        reader = PictureReader.of(source)
        spec = replace(spec, picture_bytes=reader.nbytes)
    tokens, asked = _count(source, prompt, text, run, reader)
    theirs = None if spec.heads_bytes else _published(source, offline=model.offline)
    if theirs is not None:
        spec = replace(spec, heads_bytes=theirs.numbers(spec) * types.DTYPE_BYTES[spec.dtype])
    chunk = policy.chunk or (theirs.chunk if theirs is not None and named is None else default_chunk(spec))
    passages = 0 if prompt.raw or (text is not None and not text.text) else None
    work = Workload(tokens, _text_bytes(text), chunk, asked, run.max_tokens, passages)
    units = None if settings["budget"] is None else settings["budget"].units(spec, tokens)
    target = target or Target.this(spec.device)
    usual = recipes.choose(
        spec,
        named,
        budget=units,
        bits=policy.kv_bits,
        heads=bool(spec.heads_bytes),
        published=theirs.recipe if theirs else "",
    )
    found = [forecast(spec, each, work, target) for each in (usual, *others)]
    skipped = not shown and options.skips_prefill(spec, usual, tokens, [run.question or "?"])
    report = plan.PlanReport(spec, work, target, found, text, model.weights, policy.kv_bits or 16, skipped)
    if as_json:
        plan.to_json(report)
    else:
        plan.show(report)
    for note in text.warnings if text else ():
        terminal.warn(note, quiet=quiet)
    plan.exit_if_too_big(report)


def _recipes(policy: PolicyOptions, others: list[str]) -> tuple[Recipe | None, list[Recipe]]:
    """The recipe that was named, or ``None``, and those to compare it with. Raises ``UsageError``."""
    named = None if policy.policy is None else recipes.parse(policy.policy)
    if policy.kv_bits is not None:
        (named or recipes.parse("full")).with_bits(policy.kv_bits)
    return named, [recipes.parse(text) for text in others]


def _spec(model: ModelOptions, target: Target | None, *, quiet: bool, pictures: bool) -> tuple[ModelSource, ModelSpec]:
    """Where the model is, and its shape on this machine or on the ``target``."""
    from kvcli.models import spec as model_spec
    from kvcli.models.heads_on_disk import heads_bytes

    source = _source(model, quiet=quiet)
    spec = model_spec.spec(
        source,
        device="cpu" if target is not None else model.device,  # the target need not be in this machine
        dtype=model.dtype or ("bfloat16" if target is not None else None),
        stored=model.weights,
        pictures=pictures,
    )
    if target is not None:
        spec = replace(spec, device="cuda:0")
    return source, replace(spec, heads_bytes=heads_bytes(source, spec))


def _source(model: ModelOptions, *, quiet: bool) -> ModelSource:
    """The model's config, downloaded if it is not here; what the catalogue says of it if that fails."""
    from kvcli.models import catalogue, default_model, resolve

    try:
        return run_with_progress(resolve.resolve(model.model, offline=model.offline, only_config=True), quiet=quiet)
    except ModelError:
        alias = catalogue.ALIASES.get(model.model or resolve.default_name())
        if alias is None or alias.name == default_model.DEFAULT:
            raise
        return alias.source()


def _count(
    source: ModelSource,
    options: PromptOptions,
    text: Document | None,
    run: PlanOptions,
    reader: PictureReader | None,
) -> tuple[int, int]:
    """Tokens of the document with its pictures, and of the question."""
    if text is None and run.question is None:
        return run.tokens or 0, QUESTION_TOKENS
    if source.origin == "catalogue":
        raise ModelError(f"{source.name}: its tokenizer is not on this machine", f"kvcli models pull {source.name}")
    from kvcli.engine.prompt import Prompt
    from kvcli.models.tokenizer import FileTokenizer

    prompt = Prompt(FileTokenizer(source.path), system=options.system, raw=options.raw)
    if reader is not None and text is not None:
        prompt = prompt.with_pictures(reader.read(text.pictures, prompt.encode).ids, text=bool(text.text))
    tokens = run.tokens or 0 if text is None else len(prompt.document(text.text))
    if run.question is None:
        return tokens, QUESTION_TOKENS
    return tokens, len(prompt.question(require_utf8(run.question, "the question")))


def _document(files: list[str], tokens: int | None, options: RunOptions) -> Document | None:
    from kvcli.cli import inputs

    named = "a FILE" if files else "a picture" if options.images else ""
    if tokens is not None and named:
        raise UsageError(f"--tokens assumes a document, and {named} was given too", "leave out one of them")
    if tokens is not None:
        return None
    if not named:
        raise InputError("no document was given", "kvcli plan FILE, or kvcli plan --tokens 100K")
    saved, _ = inputs.find(files)
    if saved is not None:
        raise UsageError(f"{saved.path} is a saved prefill, which needs no plan", f"kvcli cache show {saved.path}")
    stdin = sys.stdin.buffer.read() if documents.STDIN in files else None
    return inputs.read_with_pictures(options, files, stdin)


def _published(source: ModelSource, *, offline: bool) -> PublishedHeads | None:
    """The published heads that ``ask`` would use for a model without others."""
    from kvcli.models import hub

    known = published.of_model(source.name)
    if known is None or (hub.cached_heads(known.repo) is None and (offline or hub.switched_off())):
        return None
    return known


def _text_bytes(document: Document | None) -> int:
    """Bytes of the text and its description in a saved prefill."""
    if document is None:
        return 0
    return len(document.text.encode("utf-8", "surrogatepass")) + len(json.dumps(document_json(document)))
