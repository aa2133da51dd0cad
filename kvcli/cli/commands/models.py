"""``kvcli models``: which models are here, bring one here, what is one made of."""

import json
from typing import Annotated

import typer

from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.utils.sizes import format_bytes

app = typer.Typer(no_args_is_help=True, help="List, fetch and describe models.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback for an error.")]
Offline = Annotated[bool, typer.Option("--offline", help="Touch no network.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes.")]
Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="A directory, a hub id, a .gguf file or an alias.", show_default=False),
]


@app.command("ls")
def ls(as_json: Json = False, _debug: Debug = False) -> None:
    """List the aliases, the models in the hub's cache and those that kvcli converted."""
    from kvcli.models import local_models

    entries = local_models.ls()
    if as_json:
        print(json.dumps({"schema": SCHEMA, "models": [local_models.to_json(e) for e in entries]}, ensure_ascii=False))
        return
    columns = ("name", "here", "size", "window", "licence", "model")
    rows = [
        (
            e.name + (" *" if e.default else ""),
            {"hub": "hub cache", "kvcli": "converted"}.get(e.where, "no"),
            format_bytes(e.bytes) if e.bytes else "?",
            terminal.count(e.window) if e.window else "?",
            e.licence or "?",
            e.model,
        )
        for e in entries
    ]
    terminal.table(columns, rows)
    if any(e.default for e in entries):
        print("\n* the default; -m also takes a directory, a hub id or a .gguf file")


@app.command("pull")
def pull(name: Name = None, quiet: Quiet = False, as_json: Json = False, _debug: Debug = False) -> None:
    """Bring a model here, or bring it up to date; without a name the default model."""
    from kvcli.models import local_models, resolve

    source = run_with_progress(resolve.resolve(name, refresh=True), quiet=quiet)
    if as_json:
        facts = run_with_progress(local_models.show(name, offline=True), quiet=True)
        print(json.dumps({"schema": SCHEMA, "model": local_models.to_json(facts)}, ensure_ascii=False))
        return
    terminal.note(
        "model",
        f"{source.name} · {format_bytes(source.bytes)} · licence {source.licence or 'unknown'}",
        quiet=quiet,
    )
    for note in source.notes:
        terminal.warn(note, quiet=quiet)
    print(source.path)


@app.command("show")
def show(
    name: Name = None,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Describe a model from its config, without its weights; without a name the default model."""
    from kvcli.models import local_models

    facts = run_with_progress(local_models.show(name, offline=offline), quiet=quiet)
    if as_json:
        print(json.dumps({"schema": SCHEMA, "model": local_models.to_json(facts)}, ensure_ascii=False))
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
        "window": f"{terminal.count(facts.window)} tokens" if facts.window else None,
        "dtype": facts.dtype,
        "size": f"{format_bytes(facts.bytes)} ({terminal.count(facts.bytes)} bytes)" if facts.bytes else None,
        "KV cache": f"{per_token} a token in bf16" if per_token else None,
        "licence": facts.licence,
        "revision": facts.revision,
        "fingerprint": facts.fingerprint,
        "path": str(facts.path) if facts.path else None,
    }
    for label, value in rows.items():
        if value is not None:
            print(f"{label:<14}{terminal.oneline(str(value))}")
    for text in facts.notes:
        print(f"{'note':<14}{terminal.oneline(text)}")
    if not facts.local:
        print(f"{'weights':<14}not on this machine: kvcli models pull {facts.name}")
