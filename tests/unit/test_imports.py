"""No module imports itself by way of others, annotations included, and only the command line prints or exits."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2] / "kvcli"
CALLS = ("print", "exit", "quit", "sys.exit", "os._exit")
CHILD_PROCESSES = {"models/gguf_conversion.py"}
"""Programs that answer the process that started them on their standard output."""


def test_imports_have_no_cycle() -> None:
    graph = grimp.build_graph("kvcli", cache_dir=None)
    assert len(graph.modules) > 300
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_only_the_command_line_prints_or_exits() -> None:
    calls = set()
    for path in ROOT.rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if name.startswith("cli/") or name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "exit",
                "quit",
                "sys.exit",
                "os._exit",
            ):
                calls.add(name)
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {"rich", "typer", "prompt_toolkit"} & {n.partition(".")[0] for n in names}, name
    assert calls == CHILD_PROCESSES
