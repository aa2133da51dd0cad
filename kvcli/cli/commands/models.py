"""``kvcli models``: models on this machine."""

import json
from typing import Annotated

import typer

from kvcli.cli.exit_codes import SCHEMA
from kvcli.cli.help import Command, Group
from kvcli.cli.options import DEBUG, JSON, OFFLINE, QUIET
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.utils.sizes import format_bytes

app = typer.Typer(cls=Group, no_args_is_help=True, help="List, download and describe models.")

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
        print(json.dumps({"schema": SCHEMA, "models": [local_models.to_json(e) for e in entries]}, ensure_ascii=False))
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
    terminal.table(columns, rows)
    if any(e.default for e in entries):
        print("\n* default model; -m also takes a folder, a Hugging Face id or a .gguf file")


@app.command("pull", cls=Command)
def pull(name: Name = None, quiet: QUIET = False, as_json: JSON = False, _debug: DEBUG = False) -> None:
    """Download or update a model."""
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
        "context": f"{terminal.count(facts.window)} tokens" if facts.window else None,
        "dtype": facts.dtype,
        "size": f"{format_bytes(facts.bytes)} ({terminal.count(facts.bytes)} bytes)" if facts.bytes else None,
        "KV cache": f"{per_token} per token in bf16" if per_token else None,
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
        print(f"{'weights':<14}not downloaded: kvcli models pull {facts.name}")
