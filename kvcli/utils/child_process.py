"""Every process that kvcli starts. Its own import nothing from the working directory and run in folders of their own.

``python -m module`` and ``python -c code`` put the working directory first on the module path. A cloned repository
or a download folder that holds a ``json.py`` would then run it. Here Python starts isolated (``-I``), and the program
sets the path: that of this process without the working directory. The new process imports kvcli from the same place as
this one, so that a checkout, an editable install and ``PYTHONPATH`` work.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

_PACKAGE = Path(__file__).resolve().parents[1]

_PATH = "import sys; sys.path[:] = {path!r}\n"

_KVCLI = """\
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("kvcli", {file!r}, submodule_search_locations=[{folder!r}])
sys.modules["kvcli"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["kvcli"])
"""

_MAIN = "from {module} import main; sys.exit(main())"
_RUN = "import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"

Stream = int | IO[Any]


def module_path() -> list[str]:
    """``sys.path`` without the working directory, unless ``PYTHONPATH`` names it or Python is installed in it."""
    try:
        here = os.path.realpath(Path.cwd())
    except OSError:  # deleted
        here = ""
    named = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    trusted = {os.path.realpath(part) for part in (*named, *installed) if part}
    full = [os.path.abspath(part) for part in sys.path if part]  # noqa: PTH100  # Path() takes no surrogates away
    return [part for part in full if (place := os.path.realpath(part)) != here or place in trusted]


def own_module(module: str, *args: str) -> list[str]:
    """The command that runs ``main()`` of one of kvcli's modules; ``args`` follow in ``sys.argv``."""
    program = _PATH + _KVCLI + _MAIN
    places = {"file": str(_PACKAGE / "__init__.py"), "folder": str(_PACKAGE)}
    return _python(program.format(path=module_path(), module=module, **places), args)


def library_module(module: str, *args: str) -> list[str]:
    """The command that does what ``python -m module`` does, for an installed library."""
    return _python((_PATH + _RUN).format(path=module_path(), module=module), args)


def _python(program: str, args: Sequence[str]) -> list[str]:
    flags = ["-I", *(["-B"] if sys.dont_write_bytecode else [])]
    return [sys.executable, *flags, "-c", program, *args]


def edit(file: Path) -> int:
    """Open ``file`` in the user's editor, ``$VISUAL`` or ``$EDITOR`` or vi, and wait; returns its exit code.

    Raises:
        OSError: there is no such editor.
    """
    program = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with subprocess.Popen([*shlex.split(program), str(file)]) as process:
        return process.wait()


def detach(command: Sequence[str], log: int, *descriptors: int) -> None:
    """Start a process that outlives this one, in a session of its own.

    Args:
        command: an absolute program and its arguments.
        log: file descriptor of its standard output and error.
        descriptors: those that it inherits.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=descriptors,
        start_new_session=True,
    )
    process.returncode = 0  # nobody waits for it


@contextmanager
def running(
    command: Sequence[str],
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    text: bool = False,
) -> Iterator[subprocess.Popen[Any]]:
    """A process in an empty folder of its own; at the end it is stopped if it still runs, and the folder is removed.

    Args:
        command: an absolute program and its arguments; files in them are absolute too.
        stdin, stdout, stderr: as for :class:`subprocess.Popen`.
        environment: variables in addition to those of this process.
        text: pipes carry text instead of bytes.
    """
    with TemporaryDirectory(prefix="kvcli-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
