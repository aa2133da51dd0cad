"""One run of the program ``kvcli``. Imports little: ``kvcli ask`` may need no more (kvcli/cli/resident)."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn


def run(args: Sequence[str]) -> int:
    """One run of the program on ``args``, in this process; returns its exit code."""
    from kvcli.cli import defaults, exit_codes
    from kvcli.cli.signals import install_sigterm
    from kvcli.cli.views import terminal
    from kvcli.cli.views.activity import row
    from kvcli.errors import UsageError
    from kvcli.utils import config_file, files

    files.watch = row.share
    args = [*args[1:], "--help"] if [*args[:1]] == ["help"] else args
    own = list(args)[: list(args).index("--")] if "--" in args else list(args)
    found: dict[str, Any] = {}
    _environment()
    install_sigterm()
    try:
        from kvcli.cli.program import command

        program = command()
        program._main_shell_completion({}, "kvcli")  # exits if the shell asks for names
        found = {} if own[:1] == ["config"] else config_file.read()
        known = defaults.defaults(program, found, own[0] if own else "") if found else None
        with program.make_context("kvcli", list(args), default_map=known) as context:
            program.invoke(context)
        sys.stdout.flush()
    except BaseException as problem:
        if isinstance(problem, SystemExit):
            raise
        code = exit_codes.finish(problem, as_json="--json" in own, debug="--debug" in own)
        if code == UsageError.exit and (names := defaults.mentioned(found, str(problem))):
            terminal.note("note", f"{config_file.path()} sets {' and '.join(names)}: kvcli config show")
        return code
    finally:
        row.clear()
    return 0


def _environment() -> None:
    """Quiet libraries, and streams that lose no character whatever the locale."""
    import logging

    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
        # OpenMP's threads spin while they wait, and on a busy machine they spin against what they wait for.
        # Two cores with other work on them: 2,000 tokens read in 4.6 s with this, in 15 to 60 s without.
        **({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "1000"}),
    }.items():
        os.environ.setdefault(name, value)
    for name in ("torchao", "torch.utils._pytree"):  # torchao, if it is installed, warns at each start
        logging.getLogger(name).addFilter(_only_errors)
    if os.path.expanduser("~") == "~" and os.environ.get("KVCLI_CACHE_DIR"):  # noqa: PTH111  # Path raises instead
        os.environ.setdefault("HF_HOME", os.path.join(os.environ["KVCLI_CACHE_DIR"], "huggingface"))  # noqa: PTH118
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _only_errors(record: Any) -> bool:
    return bool(record.levelno >= 40)


def _open_streams() -> None:
    """Give streams that were closed (``<&-``) the null device: the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def main() -> NoReturn:
    """The console script."""
    from kvcli.cli.views import activity
    from kvcli.models import partial_imports

    partial_imports.install()
    args = sys.argv[1:]
    if os.environ.get("_KVCLI_COMPLETE"):  # the shell asks for names
        sys.exit(run(args))
    activity.announce(args)
    code = _by_engine(args) if args[:1] in (["ask"], ["prefill"], ["chat"]) else None
    sys.exit(run(args) if code is None else code)


def _by_engine(args: Sequence[str]) -> int | None:
    """The exit code of a command that a resident engine ran; ``None`` if this process is to run it."""
    from kvcli.cli.resident import client
    from kvcli.cli.signals import INTERRUPTS

    try:
        return client.run(args)
    except (client.BadKeepAlive, client.EngineDied, *INTERRUPTS) as problem:
        from kvcli.cli import exit_codes
        from kvcli.errors import KvcliError, UsageError

        error: BaseException = problem
        if isinstance(problem, client.BadKeepAlive):
            error = UsageError(str(problem), "unset KVCLI_KEEP_ALIVE")
        elif isinstance(problem, client.EngineDied):
            error = KvcliError(str(problem), problem.hint)
        return exit_codes.finish(error, as_json="--json" in args, debug="--debug" in args)
