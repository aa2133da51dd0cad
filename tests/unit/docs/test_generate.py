"""``make docs``: every command is in the reference, and the README's table is the registry's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kvcli import registry

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_generate"] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_and_every_recipe(generate: ModuleType) -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    names = list(generate.commands())
    assert {"", "ask", "cache ls", "models pull"} <= set(names)
    assert [name for name in names if f"\n### kvcli {name}".rstrip() + "\n" not in text] == []
    for axis in registry.KINDS:
        for name in registry.names(axis):
            assert f"| `{name}" in text


def test_the_readme_has_a_row_for_each_recipe_and_72_lines_beside_them(generate: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert generate.with_recipes(text) == text, "stale: run make docs"
    rows = sum(len(generate.policies(axis)) for axis in registry.KINDS)
    assert len(text.splitlines()) - rows <= 74, "with the table's two lines of headings"
    with pytest.raises(ValueError, match="needs one"):
        generate.with_recipes("# kvcli\n")


def test_a_policy_names_its_paper_or_has_a_dash(generate: ModuleType) -> None:
    papers = {cls().name: generate.paper(cls) for axis in registry.KINDS for cls in generate.policies(axis)}
    assert papers["locret"] == "[Huang et al. 2024](https://arxiv.org/abs/2410.01805)"
    assert {name for name, link in papers.items() if link == "–"} == {"full", "random", "dense", "int8"}


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
