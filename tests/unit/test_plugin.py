"""Third parties add a policy through an entry point: installed here for real, found without any other edit."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "kvcli-longest"
version = "1.0"
[project.entry-points."kvcli.eviction"]
longest = "kvcli_longest:Longest"
broken = "kvcli_longest:NotAPolicy"
[tool.hatch.build.targets.wheel]
include = ["kvcli_longest.py"]
"""

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

from kvcli.eviction.base import Chunk, EvictionPolicy


@dataclass(frozen=True, kw_only=True)
class Longest(EvictionPolicy):
    """Keeps the keys with the largest norm, to see what happens."""

    name: ClassVar[str] = "longest"
    power: float = 1.0

    def score(self, chunk: Chunk):
        return chunk.k[:, chunk.kept :].float().norm(dim=-1) ** self.power


class NotAPolicy:
    pass
'''

USE = """
from kvcli import registry
from kvcli.errors import UsageError
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import asked, distance, reference

assert "longest" in registry.names("eviction"), registry.names("eviction")
recipe = parse("longest(budget=20, power=2.5)")
assert str(recipe) == "longest(budget=20, power=2.5)"
model, body, question = tiny.load("llama"), tiny.document(40), tiny.document(5, seed=1)
assert distance(asked(model, body, question, "longest(budget=40)", 16), reference(model, body + question)[-5:]) < 1e-5
try:
    parse("broken")
except UsageError as error:
    assert "kvcli_longest:NotAPolicy" in error.message, error.message
else:
    raise AssertionError("a class that is no policy was taken")
print("plugin works")
"""


def test_an_installed_plugin_is_a_policy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "kvcli_longest.py").write_text(MODULE)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(install, check=True, capture_output=True)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(target), str(root), str(root / "kernels")])
    used = subprocess.run(
        [sys.executable, "-c", USE],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    assert "plugin works" in used.stdout
