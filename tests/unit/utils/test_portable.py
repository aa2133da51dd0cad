"""What lets kvcli be imported on systems that are not POSIX."""

import ast
from collections.abc import Iterator
from pathlib import Path

import kvcli
import kvcli_kernels

POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}


def _at_import(node: ast.AST) -> Iterator[str]:
    """The modules that a module's code imports when it is imported itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (name.name.partition(".")[0] for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield (child.module or "").partition(".")[0]
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _at_import(child)


def test_no_module_needs_a_posix_module_to_be_imported() -> None:
    sources = [path for package in (kvcli, kvcli_kernels) for path in Path(package.__path__[0]).rglob("*.py")]
    assert len(sources) > 100
    found = {str(path): POSIX & set(_at_import(ast.parse(path.read_text("utf-8")))) for path in sources}
    assert not {path: names for path, names in found.items() if names}
