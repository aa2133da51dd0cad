"""``kvcli stop``: end the engines that wait for the next ``kvcli ask``."""

from kvcli.cli.commands import ps
from kvcli.cli.options import DEBUG, JSON, QUIET
from kvcli.cli.views import terminal


def command(as_json: JSON = False, quiet: QUIET = False, _debug: DEBUG = False) -> None:
    """End the engines that keep a model, each after its command."""
    found = ps.ask("stop")
    if as_json:
        ps.show(found, as_json=True)
        return
    busy = sum(engine["state"] != "idle" for engine in found)
    text = terminal.plural(len(found), "engine") if found else "no engine was running"
    terminal.note("stopped", text + (f"; {busy} after the command under way" if busy else ""), quiet=quiet)
