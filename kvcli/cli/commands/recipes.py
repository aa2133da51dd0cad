"""``kvcli recipes``: values of ``--policy``."""

import inspect
import sys
from dataclasses import MISSING, fields
from statistics import mode
from typing import Any

from kvcli import registry
from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.views import terminal

AXES: tuple[tuple[registry.Axis, str, str], ...] = (
    ("eviction", "keep", "eviction policies: which KV pairs are kept"),
    ("share", "share", "layer sharings: which layers use the KV pairs of another layer"),
    ("fold", "fold", "folds: what is remembered of evicted KV pairs"),
    ("sparse_prefill", "prefill", "sparse prefills: which KV pairs a chunk attends to"),
    ("storage", "hold", "KV storages: how they are stored after prefill"),
)


def command(
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """List what --policy takes: eviction policies, KV storages and further terms."""
    found = {key: policies(axis) for axis, key, _ in AXES}
    if as_json:
        terminal.print_json(**found)
        return
    for _, key, meaning in AXES:
        if not found[key]:
            continue
        shared = _shared(found[key])
        terminal.write(sys.stdout, f"{meaning}\n")
        rows = [(p["name"], p["summary"], _options(p["options"], shared)) for p in found[key]]
        terminal.table(("name", "summary", "fields"), rows)
        terminal.write(sys.stdout, "")
        if shared:
            terminal.paragraph(sys.stdout, f"fields of all: {_options(shared, {})}\n", indent=2)
    terminal.write(sys.stdout, "A recipe is POLICY or POLICY+TERM+…, with one term of each kind at most:")
    terminal.write(sys.stdout, '  kvcli ask --policy "locret(budget=4096)+int8" FILE "…"')


def policies(axis: registry.Axis) -> list[dict[str, Any]]:
    """Name, summary and fields with their defaults of every term on ``axis``."""
    found = []
    for name in registry.names(axis):
        policy = registry.lookup(axis, name)
        lines = (inspect.getdoc(policy) or "").splitlines()
        options = {
            f.name: (
                f.default
                if f.default is not MISSING
                else f.default_factory()
                if f.default_factory is not MISSING
                else None
            )
            for f in fields(policy)
            if f.init
        }
        found.append({"name": name, "summary": lines[0] if lines else "", "options": options})
    return found


def _shared(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields that all policies of an axis have, with their most common default."""
    names = [k for k in found[0]["options"] if all(k in p["options"] for p in found)] if found else []
    return {k: mode([p["options"][k] for p in found]) for k in names}


def _options(options: dict[str, Any], known: dict[str, Any]) -> str:
    unlike = (f"{k}={v}" for k, v in options.items() if k not in known or known[k] != v)
    return ", ".join(text.replace("=None", "=none") for text in unlike)
