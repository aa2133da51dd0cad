"""``kvcli serve [FILE…]``: load the model once and answer over HTTP until stopped."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import typer

from kvcli.cli.model_loading import open_model
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    CacheOptions,
    DocumentOptions,
    ModelOptions,
    OutputOptions,
    RecipeOptions,
    RunOptions,
)
from kvcli.cli.resident import servers
from kvcli.cli.resident.sockets import UnsafeDirectory
from kvcli.cli.signals import INTERRUPTS, Interrupted, interruptible
from kvcli.cli.views import terminal
from kvcli.documents import STDIN
from kvcli.errors import SCHEMA, ResourceError, UsageError
from kvcli.utils.sizes import format_bytes, parse_size

if TYPE_CHECKING:
    import socket

    from kvcli.documents import Document
    from kvcli.pipeline import DocumentContext
    from kvcli.prompt_cache.directory import CacheDirectory

T = TypeVar("T")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PORT = 8421
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class ServerOptions(OptionGroup):
    """Where the server listens, and what it may use."""

    PANEL: ClassVar[str] = "Server"

    host: str = option("--host ADDRESS", "Address to listen on.", "127.0.0.1", MAIN)
    port: int | None = option(
        "--port N", "Port; 0 takes a free one.", None, MAIN, min=0, max=65535, show_default="8421"
    )
    background: bool = option("--background", "Return when it is ready; the server goes on.", False, MAIN)
    status: bool = option("--status", "List your running servers instead.", False)
    stop: bool = option("--stop", "End your running servers instead; only the one on --port N if that is given.", False)
    as_json: bool = option("--json", "Print --status as JSON.", False)
    token: str | None = option("--token TEXT", "Refuse requests without this bearer token. Default: $KVCLI_TOKEN.")
    root: str | None = option("--root DIR", "Requests may also name files below this folder, by relative path.")
    queue: int = option("--queue N", "Requests under way at most.", 64, min=1)
    memory: str | None = option("--memory SIZE", "KV cache of all prefilled documents. Default: 1/4 of free memory.")
    keep_alive: str | None = option(
        "--keep-alive TIME", "Stop after this idle time: 30m, 2h. Default: never.", envvar=None
    )

    @property
    def secret(self) -> str | None:
        """The token of the option or the environment."""
        return self.token or os.environ.get("KVCLI_TOKEN") or None

    def __post_init__(self) -> None:
        if self.host.strip("[]") not in _LOOPBACK and not self.secret:
            raise UsageError(f"--host {self.host} can be reached by others, and there is no token", "--token TEXT")
        if self.root is not None and not Path(self.root).is_dir():
            raise UsageError(f"--root {self.root} is not a folder", "--root .")
        if self.memory is not None:
            parse_size(self.memory, "--memory")
        self.idle_seconds()
        if self.background + self.status + self.stop > 1:
            raise UsageError("--background, --status and --stop exclude each other", "kvcli serve --status")
        if self.as_json and not self.status:
            raise UsageError("--json belongs to --status", "kvcli serve --status --json")

    def idle_seconds(self) -> float | None:
        """``--keep-alive`` in seconds. Raises ``UsageError``."""
        if self.keep_alive is None:
            return None
        match = re.fullmatch(r"(\d+)([smh]?)", self.keep_alive.strip())
        if match is None or not int(match[1]):
            raise UsageError(
                f"--keep-alive {self.keep_alive}: expected a time such as 90s, 30m or 2h", "--keep-alive 30m"
            )
        return int(match[1]) * _SECONDS[match[2]]


@takes_groups
def command(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Documents.", show_default=False)] = None,
    *,
    server: ServerOptions,
    model: ModelOptions,
    document: DocumentOptions,
    recipe: RecipeOptions,
    cache: CacheOptions,
    output: OutputOptions,
) -> None:
    """Answer over HTTP with one loaded model, as the OpenAI API does.

    FILEs are prefilled before the first request. Requests name them, and uploaded files, by id: GET /v1/files.
    A long prompt is read as a document is, with eviction. Ctrl-C or SIGTERM ends the answers and stops the server.
    """
    if server.status or server.stop:
        if files:
            raise UsageError("--status and --stop take no FILE", "kvcli serve --status")
        _others(server, quiet=output.quiet)
        return
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        raise UsageError("kvcli serve needs starlette and uvicorn", "pip install 'kvcli[serve]'")
    from kvcli.server.run import bind

    options = RunOptions.of(model, document, recipe, cache, output)
    named = options.check()
    if named is not None and named.policy.query_aware:
        raise UsageError(f"'{named}' scores for one question, and a server answers many", "--policy keydiff")
    if STDIN in (files or ()):
        raise UsageError("kvcli serve reads no standard input", "kvcli serve FILE")
    documents = [(name, _read(options, name)) for name in files or ()]
    with bind(server.host, _PORT if server.port is None else server.port) as listening:
        detached, log = (lambda: None), None
        if server.background:
            child = _safely(lambda: servers.detach(listening.getsockname()[1]))
            if child is None:
                return
            detached, log = child
        _serve(options, server, documents, listening, detached, log)


def _others(server: ServerOptions, *, quiet: bool) -> None:
    """Show or end the servers that run. Raises ``ResourceError`` if one does not end."""
    found = _safely(lambda: servers.running(server.port))
    if server.as_json:
        print(json.dumps({"schema": SCHEMA, "servers": [asdict(one) for one in found]}))
    elif not found:
        terminal.note("servers", "none", quiet=quiet)
    elif server.status:
        columns = ("pid", "address", "model", "device", "documents", "age", "log")
        terminal.table(columns, [_row(one) for one in found], optional=("log", "documents"))
    else:
        for one in found:
            if not servers.stop(one):
                raise ResourceError(f"the server at {one.address} does not end", f"kill -9 {one.pid}")
            terminal.note("stopped", one.address, quiet=quiet)


def _safely(work: Callable[[], T]) -> T:
    try:
        return work()
    except UnsafeDirectory as problem:
        raise ResourceError(f"there is no safe directory for servers: {problem}", "export XDG_RUNTIME_DIR=…") from None


def _row(one: servers.Server) -> tuple[str, ...]:
    age = terminal.duration(max(0.0, time.time() - one.started))
    return str(one.pid), one.address, one.model, one.device, str(one.documents), age, one.log or "–"


def _serve(
    options: RunOptions,
    server: ServerOptions,
    documents: list[tuple[str, Document]],
    listening: socket.socket,
    detached: Callable[[], None],
    log: str | None,
) -> None:
    """Serve until stopped; ``detached`` leaves the terminal as soon as requests are accepted."""
    loaded = open_model(options)
    from kvcli.server.run import serve
    from kvcli.server.service import Service, ServiceOptions
    from kvcli.utils.process_memory import available

    spec, quiet, ready = loaded.model.spec, options.quiet, [False]
    memory = available(spec.device) // 4 if server.memory is None else parse_size(server.memory, "--memory")
    engine = ServiceOptions(options.policy, options.budget, options.kv_bits, options.chunk)
    names = list(dict.fromkeys(name for name in (options.model, spec.name) if name))
    cache = _cache(options) if options.cache else None
    root = None if server.root is None else Path(server.root)
    service = Service(loaded.model, names, engine, cache=cache, memory=memory, queue=server.queue, root=root)

    def prefilled(name: str, context: DocumentContext) -> None:
        kept = 0 if context.context is None else context.context.kept
        text = f"{name} · {terminal.count(context.tokens)} tokens, {terminal.count(kept)} kept"
        terminal.note("ready", text, quiet=quiet)

    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def started(_stop: object) -> None:
        ready[0] = True
        stored = spec.dtype if options.weights == "bf16" else options.weights
        text = f"{names[0]} {stored} · {spec.device} · up to {format_bytes(memory)} of KV cache · {address}"
        terminal.note("serving", text, quiet=quiet)
        known.enter_context(
            servers.registered(
                servers.Server(os.getpid(), port, address, names[0], spec.device, len(documents), log, time.time())
            )
        )
        detached()

    known = ExitStack()
    try:
        serve(
            service,
            listening,
            host=server.host,
            token=server.secret,
            documents=documents,
            keep_alive=server.idle_seconds(),
            verbose=options.verbose,
            on_prefilled=prefilled,
            on_ready=started,
        )
    except INTERRUPTS as cause:
        if not ready[0]:
            raise Interrupted(
                "interrupted while prefilling; progress is saved", "the same command again", cause=cause
            ) from None
    finally:
        known.close()
    terminal.note("stopped", f"{names[0]} is no longer served", quiet=quiet)


def _cache(options: RunOptions) -> CacheDirectory | None:
    from kvcli.prompt_cache.directory import CacheDirectory

    try:
        return CacheDirectory.default()
    except ResourceError as error:
        terminal.warn(f"prefills will not be saved: {error.message}", quiet=options.quiet)
        return None


def _read(options: RunOptions, name: str) -> Document:
    from kvcli.cli.inputs import read_documents

    with interruptible(f"reading {name}"):
        document = read_documents(options, [name])
    for text in document.warnings:
        terminal.warn(text, quiet=options.quiet)
    return document
