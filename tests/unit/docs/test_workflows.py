"""The workflows may install and call make, and nothing else; each target that they call exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_only_installs_and_calls_make(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert steps
    for step in steps:
        if "uses" in step:
            assert step["uses"].partition("@")[0] in {"actions/checkout", "actions/setup-python"}
            continue
        command, *words = re.sub(r"\S*\$\{\{.*?\}\}", "", step["run"]).split()
        assert (command, words[:1]) == ("pip", ["install"]) or command == "make", step["run"]
        if command == "make":
            assert set(words) <= TARGETS


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())
    described = set(re.findall(r"^([\w-]+):.*?## \S", text, re.MULTILINE))
    assert phony == described == TARGETS
    assert ".DEFAULT_GOAL := help" in text


def test_yaml_of_the_repository_is_readable() -> None:
    files = [*ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) == 5
    for path in files:
        assert yaml.safe_load(path.read_text())
