"""``kvcli models``: models on this machine."""

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from kvcli.cli.help import Command, Group
from kvcli.cli.option_groups import annotation
from kvcli.cli.options import DEBUG, JSON, OFFLINE, QUIET
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.errors import ResourceError
from kvcli.models.default_model import DEFAULT
from kvcli.utils import config_file
from kvcli.utils.sizes import format_bytes, parse_tokens

if TYPE_CHECKING:
    from kvcli.planning.suggest import Suggestion

app = typer.Typer(cls=Group, no_args_is_help=True, help="Choose, list, download and describe models.")

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="Alias, Hugging Face id, folder or .gguf. Default: the default model.",
        show_default=False,
    ),
]


@app.command("ls", cls=Command)
def ls(as_json: JSON = False, _debug: DEBUG = False) -> None:
    """List aliases, downloaded models and converted models."""
    from kvcli.models import local_models

    entries = local_models.ls()
    if as_json:
        terminal.print_json(models=[local_models.to_json(e) for e in entries])
        return
    columns = ("name", "here", "size", "context", "licence", "model")
    rows = [
        (
            e.name + (" *" if e.default else ""),
            {"hub": "downloaded", "kvcli": "converted"}.get(e.where, "no"),
            format_bytes(e.bytes) if e.bytes else "?",
            terminal.count(e.window) if e.window else "?",
            e.licence or "?",
            e.model,
        )
        for e in entries
    ]
    terminal.table(columns, rows, optional=["model"])
    if any(e.default for e in entries):
        print("\n* default model; -m also takes a folder, a Hugging Face id or a .gguf file")


@app.command("pull", cls=Command)
def pull(name: Name = None, quiet: QUIET = False, as_json: JSON = False, _debug: DEBUG = False) -> None:
    """Download or update a model."""
    from kvcli.models import local_models, resolve

    source = run_with_progress(resolve.resolve(name, refresh=True), quiet=quiet)
    if as_json:
        facts = run_with_progress(local_models.show(name, offline=True), quiet=True)
        terminal.print_json(model=local_models.to_json(facts))
        return
    terminal.note(
        "model",
        f"{source.name} · {format_bytes(source.bytes)} · licence {source.licence or 'unknown'}",
        quiet=quiet,
    )
    for note in source.notes:
        terminal.warn(note, quiet=quiet)
    terminal.write(sys.stdout, str(source.path))


@app.command("show", cls=Command)
def show(
    name: Name = None,
    offline: OFFLINE = False,
    quiet: QUIET = False,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """Describe a model from its config, without its weights."""
    from kvcli.models import local_models

    facts = run_with_progress(local_models.show(name, offline=offline), quiet=quiet)
    if as_json:
        terminal.print_json(model=local_models.to_json(facts))
        return
    per_token = f"{terminal.count(facts.kv_bytes_per_token)} bytes" if facts.kv_bytes_per_token else None
    rows = {
        "name": facts.name,
        "model": facts.model,
        "architecture": facts.architecture,
        "layers": facts.layers,
        "heads": facts.heads,
        "KV heads": facts.kv_heads,
        "head dim": facts.head_dim,
        "context": f"{terminal.count(facts.window)} tokens" if facts.window else None,
        "dtype": facts.dtype,
        "size": f"{format_bytes(facts.bytes)} ({terminal.count(facts.bytes)} bytes)" if facts.bytes else None,
        "KV cache": f"{per_token} per token in bf16" if per_token else None,
        "licence": facts.licence,
        "revision": facts.revision,
        "fingerprint": facts.fingerprint,
        "path": str(facts.path) if facts.path else None,
    }
    shown = [(label, str(value)) for label, value in rows.items() if value is not None]
    shown += [("note", text) for text in facts.notes]
    shown += [] if facts.local else [("weights", f"not downloaded: kvcli models pull {facts.name}")]
    terminal.facts(shown, 14)


@app.command("suggest", cls=Command)
def suggest(
    gpu: Annotated[str | None, annotation("--gpu NAME|SIZE", "For this GPU: 4090, 3060 or 8GB.")] = None,
    tokens: Annotated[
        int,
        annotation(
            "--tokens N", "Tokens of the document: 8192, 100K or 1M.", parser=parse_tokens, show_default="100000"
        ),
    ] = 100_000,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """Show which models this machine or a GPU can run, and suggest one.

    Memory is estimated with the arithmetic of kvcli ask and its default recipe. Times are estimates from earlier runs
    of the default model on this machine. Exits with 5 if no model fits.
    """
    from kvcli.models.defaults import default_device, default_dtype
    from kvcli.planning import suggest as suggestions
    from kvcli.planning.estimate import Target

    device = "cuda:0" if gpu else default_device()
    target = Target.gpu(gpu) if gpu else Target.this(device)
    found = suggestions.suggest(target, device=device, dtype=default_dtype(device), tokens=tokens)
    best = suggestions.best(found)
    if as_json:
        rows = [_suggestion_json(each, tokens) for each in found]
        body = {"target": target.name, "usable_bytes": target.usable, "tokens": tokens, "models": rows}
        terminal.print_json(**body, suggested=best.alias.name if best else None)
    else:
        free = format_bytes(target.usable)
        terminal.write(sys.stdout, f"A document of {terminal.count(tokens)} tokens on {target.name}, {free} free:\n")
        columns = ["name", "parameters", "context", "weights", "memory", "kept", "prefill", "fits", "licence"]
        timed = any(each.seconds is not None for each in found)
        shown = [name for name in columns if timed or name != "prefill"]
        cells = [[_suggestion_row(each)[name] for name in shown] for each in found]
        terminal.table(shown, cells, optional=["parameters", "licence"])
        gated = any(each.alias.gated for each in found)
        print("\n* Hugging Face asks you to accept its terms before a download" if gated else "")
        print(f"Memory is computed from the sizes of the models; only {DEFAULT} was measured.")
    if best is None:
        smallest = found[0]
        needed = smallest.forecast.plan.total if smallest.forecast.plan else 0
        raise ResourceError(
            f"no model fits: {smallest.alias.name} needs {format_bytes(needed)} of {format_bytes(target.usable)}",
            "kvcli ask FILE --quotes-only, which needs no model",
        )
    if not as_json:
        weights = "" if best.weights == "bf16" else f" --weights {best.weights}"
        budget = f" --budget {best.budget}" if best.budget else ""
        print(f"\nThe largest one that fits: kvcli models use {best.alias.name}{weights}{budget}")


class Use(Command):
    """It sets the defaults of the others, and so takes none."""

    takes_defaults = False


@app.command("use", cls=Use)
def use(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias, Hugging Face id, folder or .gguf.")],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="KIND", help="Also its weights: bf16, int8 or nf4.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="N|P%|SIZE", help="Also the KV pairs to keep per head.")
    ] = None,
    _debug: DEBUG = False,
) -> None:
    """Make a model the default of all commands. Downloads nothing."""
    from kvcli.cli.options import ModelOptions
    from kvcli.models import resolve
    from kvcli.planning.budget import Budget

    if weights is not None:
        ModelOptions(weights=weights)
    if budget is not None:
        Budget.parse(budget)
    known = resolve.check_name(name)
    for key, value in (("model", known), ("weights", weights), ("budget", budget)):
        with suppress(KeyError):  # what the model before it needed is not kept
            config_file.change([key], value)
    terminal.note("model", f"{known} is now the default: {config_file.path()}")
    if os.environ.get("KVCLI_MODEL"):
        terminal.warn(f"KVCLI_MODEL={os.environ['KVCLI_MODEL']} in the environment comes before it")


def _suggestion_row(found: "Suggestion") -> dict[str, str]:
    alias, plan = found.alias, found.forecast.plan
    slow = found.forecast.fits and not found.fits
    sizes = sorted({alias.parameters, alias.active}, reverse=True)
    billions, *active = (f"{n / 1e9:.2f} B" if n < 1e9 else f"{n / 1e9:.1f} B" for n in sizes)
    return {
        "name": alias.name + (" *" if alias.gated else ""),
        "parameters": billions + (f" ({active[0]} used)" if active else ""),
        "context": terminal.count(alias.window),
        "weights": found.weights,
        "memory": format_bytes(plan.total) if plan else "-",
        "kept": terminal.count(found.forecast.kept),
        "prefill": "?" if found.seconds is None else terminal.duration(found.seconds),
        "fits": "slow" if slow else "yes" if found.fits else "too long" if plan is None else "no",
        "licence": alias.licence,
    }


def _suggestion_json(found: "Suggestion", tokens: int) -> dict[str, object]:
    alias = found.alias
    facts: dict[str, object] = {
        "name": alias.name,
        "model": alias.repo,
        "parameters": alias.parameters,
        "window": alias.window,
    }
    facts["active_parameters"] = alias.active
    facts |= {"measured": alias.name == DEFAULT, "weight_bytes": found.weight_bytes}
    terms = {"licence": alias.licence, "gated": alias.gated}
    seconds = None if found.seconds is None else round(found.seconds, 1)
    run = {"weights": found.weights, "fits": found.fits, "prefill_s": seconds}
    return {**facts, **terms, **run, "plan": found.forecast.to_json(tokens)}
