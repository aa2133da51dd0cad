"""``kvcli plan FILE…``: memory, disk and time of a run before it; loads no model and imports no torch."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcli import documents, types
from kvcli.cli.options import (
    BUDGET,
    CHUNK,
    DEBUG,
    DEVICE,
    DTYPE,
    EXCLUDE,
    INCLUDE,
    JSON,
    KV_BITS,
    MAX_TOKENS,
    MODEL,
    OCR,
    OFFLINE,
    PAGES,
    POLICY,
    QUIET,
    SYSTEM,
    WEIGHTS,
    reading_options,
)
from kvcli.cli.request import require_utf8
from kvcli.cli.views import plan, terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.documents.document import document_json
from kvcli.errors import InputError, UsageError
from kvcli.planning.budget import Budget
from kvcli.planning.estimate import Target, Workload, forecast
from kvcli.types import ANSWER_TOKENS, QUESTION_TOKENS

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.engine.prompt import Prompt
    from kvcli.models.resolve import ModelSource
    from kvcli.types import ModelSpec


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="What would be read; - is standard input.", show_default=False),
    ] = None,
    model: MODEL = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", min=1, help="A text of N tokens instead of a file.")
    ] = None,
    policy: POLICY = None,
    budget: BUDGET = None,
    what_if: Annotated[
        list[str] | None, typer.Option("--what-if", metavar="RECIPE", help="Compare with this recipe; repeatable.")
    ] = None,
    weights: WEIGHTS = "bf16",
    kv_bits: KV_BITS = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME|SIZE", help="Another GPU: 4090, 3060 or 8GB.")
    ] = None,
    question: Annotated[
        str | None, typer.Option("-e", "--question", metavar="TEXT", help="The question; by default 256 tokens.")
    ] = None,
    max_tokens: MAX_TOKENS = None,
    system: SYSTEM = None,
    raw: Annotated[bool, typer.Option("-r", "--raw", help="No chat template.")] = False,
    chunk: CHUNK = None,
    ranges: PAGES = None,
    include: INCLUDE = None,
    exclude: EXCLUDE = None,
    ocr: OCR = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Say what a run would take, before it: memory, disk and time. Loads no model.

    The arithmetic is that of ``kvcli ask``. Times are the medians of this machine's own last runs. With --gpu it is
    about another GPU: whether it fits there, and the largest budget that does. Exit code 5 says that it does not fit.
    """
    from kvcli.models import resolve
    from kvcli.models import spec as model_spec
    from kvcli.recipe import default, parse

    if gpu is not None and device is not None:
        raise UsageError("--gpu is about a GPU you need not have, --device about this machine", "leave out --device")
    if raw and system:
        raise UsageError("--system has no place in a raw prompt", "leave out --raw or --system")
    wanted = None if budget is None else Budget.parse(budget)
    named = None if policy is None else parse(policy)
    if kv_bits is not None:
        (named or parse("full")).with_bits(kv_bits)
    others = [parse(text) for text in what_if or []]
    place = None if gpu is None else Target.gpu(gpu)
    chosen = reading_options(ranges, include, exclude, ocr)
    document = _document(list(files or []), tokens, chosen)

    source = run_with_progress(resolve.resolve(model, offline=offline, only_config=True), quiet=quiet)
    spec = model_spec.spec(
        source,
        device="cpu" if place is not None else device,  # a GPU that is not here is not asked for
        dtype=dtype or ("bfloat16" if place is not None else None),
        held=weights,
    )
    if place is not None:
        spec = replace(spec, device="cuda:0")
    spec = replace(spec, heads_bytes=_heads(source, spec))
    prompt = _prompt(source.path, system, raw) if document is not None or question is not None else None
    ids = len(prompt.document(document.text)) if prompt and document else tokens or 0
    asked = (
        len(prompt.question(require_utf8(question, "the question")))
        if prompt and question is not None
        else QUESTION_TOKENS
    )
    work = Workload(
        ids, _text_bytes(document), chunk or types.CHUNK, asked, max_tokens or ANSWER_TOKENS, 0 if raw else None
    )

    units = None if wanted is None else wanted.units(spec, ids)
    recipe = named or default(spec, budget=units, heads=bool(spec.heads_bytes))
    if named is not None and units is not None:
        recipe = named.with_budget(units)
    if kv_bits is not None:
        recipe = recipe.with_bits(kv_bits)
    place = place or Target.this(spec.device)
    found = [forecast(spec, each, work, place) for each in (recipe, *others)]
    outlook = plan.PlanReport(spec, work, place, found, document, weights, kv_bits or 16, ())
    if as_json:
        plan.to_json(outlook)
    else:
        plan.show(outlook)
    for note in (*(document.warnings if document else ()), *outlook.notes):
        terminal.warn(note, quiet=quiet)
    plan.exit_if_too_big(outlook)


def _document(files: list[str], tokens: int | None, chosen: documents.Options) -> "Document | None":
    from kvcli.cli import inputs

    if tokens is not None and files:
        raise UsageError("--tokens stands for a text that is not there, and a file was given", "leave out one of them")
    if tokens is not None:
        return None
    if not files:
        raise InputError("no document was given", "kvcli plan FILE, or kvcli plan --tokens 100000")
    saved, _ = inputs.find(files)
    if saved is not None:
        raise UsageError(f"{saved.path} is read already", f"kvcli cache show {saved.path}")
    stdin = sys.stdin.buffer.read() if documents.STDIN in files else None
    return documents.read(files, stdin, chosen)


def _prompt(directory: Path, system: str | None, raw: bool) -> "Prompt":
    from kvcli.engine.prompt import Prompt
    from kvcli.models.tokenizer import LightTokenizer

    return Prompt(LightTokenizer(directory), system=system, raw=raw)


def _heads(source: "ModelSource", spec: "ModelSpec") -> int:
    """Size of the retaining heads, looked for where ``ask`` finds them."""
    from kvcli.models import spec as model_spec
    from kvcli.utils import files as file_utils

    folders = [file_utils.data_dir() / "heads", Path(documents.__file__).parents[1] / "retaining_heads" / "shipped"]
    return model_spec.heads_bytes(source, spec, folders)


def _text_bytes(document: "Document | None") -> int:
    """What of a saved reading is the text and what is known of it."""

    if document is None:
        return 0
    return len(document.text.encode("utf-8", "surrogatepass")) + len(json.dumps(document_json(document)))
