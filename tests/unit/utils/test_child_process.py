"""Processes that kvcli starts import nothing from the working directory."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvcli.utils import child_process

ROOT = Path(__file__).parents[3]
STARTERS = {"multiprocessing", "pty"}
FUNCTIONS = {
    "subprocess": {"run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}
ALLOWED = Path("kvcli/utils/child_process.py")


def starts(source: str) -> list[str]:
    """What in a module can start a process. The names of ``subprocess`` for streams, errors and types cannot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in STARTERS]
            found += [alias.name for alias in node.names if alias.asname and alias.name in FUNCTIONS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            own = node.module.split(".")[0] in {*STARTERS, "subprocess"}
            if own or names & (FUNCTIONS.get(node.module, set()) | {"ProcessPoolExecutor"}):
                found.append(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            if name in FUNCTIONS.get(module, ()) or (module == "os" and name.startswith(("exec", "spawn"))):
                found.append(f"{module}.{name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.Popen":
            found.append("subprocess.Popen")
    return found


def test_only_one_module_starts_processes() -> None:
    sources = [p for folder in ("kvcli", "kernels") for p in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    found = {p.relative_to(ROOT): starts(p.read_text("utf-8")) for p in sources}
    assert {p: what for p, what in found.items() if what} == {
        ALLOWED: ["subprocess.Popen"] * 3,  # a child, a detached one and an editor
        Path("kvcli/cli/resident/servers.py"): ["os.fork"],  # a copy of this process, which starts no program
    }


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess; subprocess.run(['a'])",
        "import subprocess; subprocess.Popen(['a'])",
        "import subprocess as s",
        "from subprocess import run",
        "import multiprocessing.pool",
        "from multiprocessing import Pool",
        "from concurrent.futures import ProcessPoolExecutor",
        "import os; os.execv('a', [])",
        "import asyncio; asyncio.create_subprocess_exec('a')",
    ],
)
def test_the_walk_sees(line: str) -> None:
    assert starts(line)


def test_every_command_is_isolated() -> None:
    for command in (child_process.own_module("kvcli.x"), child_process.library_module("pip")):
        assert command[:2] == [sys.executable, "-I"]
        assert Path(command[0]).is_absolute()


PLANTED = ("json", "numpy", "torch", "gguf", "pip", "sitecustomize", "usercustomize", "kvcli", "importlib", "runpy")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose modules leave a file when they run."""
    folder = tmp_path / "download"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    monkeypatch.chdir(folder)
    return tmp_path / "ran"


def output(command: list[str]) -> str:
    with child_process.running(command, stderr=subprocess.STDOUT, text=True) as process:
        return str(process.communicate(timeout=300)[0])


def test_nothing_of_the_working_directory_runs(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in ("", str(Path.cwd())):  # python -c, python -m
        monkeypatch.setattr(sys, "path", [first, *sys.path])
        assert Path.cwd() not in map(Path, child_process.module_path())
        assert "pip" in output(child_process.library_module("pip", "--version"))
    assert not hostile.exists()


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    command = child_process.library_module("timeit", "-n1", "-r1", "import os; print(os.getcwd(), os.listdir())")
    folder, rest = output(command).split(" ", 1)
    assert rest.startswith("[]")
    assert Path(folder) != Path.cwd()
    assert not Path(folder).exists()
    assert not list(tmp_path.iterdir())


def test_pythonpath_is_kept_and_the_working_directory_in_it_if_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("print('mine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "No module named mine" in output(child_process.library_module("mine"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", str(tmp_path))))
    assert output(child_process.library_module("mine")) == "mine\n"


def test_kvcli_is_the_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "kvcli"
    other.mkdir()
    (other / "__init__.py").write_text("print('another')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    said = output(child_process.own_module("kvcli.errors"))  # has no main(): the traceback names its file
    assert "another" not in said
    assert str(ROOT) in said


def test_a_process_that_is_left_is_stopped() -> None:
    with child_process.running(child_process.library_module("timeit", "-n1", "import time; time.sleep(60)")) as process:
        assert process.poll() is None
    assert process.returncode is not None
