"""A name means one thing: no two public classes of the project share one."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_public_class_name_occurs_twice() -> None:
    places = defaultdict(list)
    for path in sorted([*(ROOT / "kvcli").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
