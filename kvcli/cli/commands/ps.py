"""``kvcli ps``: the engines that wait for the next ``kvcli ask``."""

from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.resident import client, sockets
from kvcli.cli.views import terminal
from kvcli.errors import ResourceError
from kvcli.utils.sizes import format_bytes

NAMES = ("pid", "state", "model", "device", "dtype", "weights", "memory_bytes", "commands", "age_s", "leaves_in_s")


def command(as_json: JSON = False, _debug: DEBUG = False) -> None:
    """List the engines that keep a model for the next kvcli ask."""
    show(ask("status"), as_json=as_json)


def ask(what: str) -> list[dict[str, object]]:
    """Tell every engine something; returns their answers. Raises ``ResourceError``."""
    try:
        return client.engines(what)
    except sockets.UnsafeDirectory as problem:
        raise ResourceError(f"there is no safe place for sockets: {problem}", "export XDG_RUNTIME_DIR=…") from None


def show(found: list[dict[str, object]], *, as_json: bool) -> None:
    """Print engines as a table or as JSON."""
    if as_json:
        terminal.print_json(engines=[{name: e[name] for name in NAMES} for e in found])
    elif not found:
        terminal.note("engines", "none; kvcli ask starts one")
    else:
        terminal.table(("pid", "state", "model", "device", "dtype", "memory", "commands", "ends"), map(_row, found))


def _row(engine: dict[str, object]) -> tuple[str, ...]:
    left, memory = engine["leaves_in_s"], engine["memory_bytes"]
    assert isinstance(memory, int)
    ends = f"in {terminal.duration(left)}" if isinstance(left, float) else ""
    names = ("pid", "state", "model", "device", "dtype")
    return (*(str(engine[name] or "–") for name in names), format_bytes(memory), str(engine["commands"]), ends)
