"""Several machines, acted out by several Ray nodes on this one, each with a cache directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcli.corpus import ray_cluster
from kvcli.utils.version import __version__
from tests.e2e.conftest import Call, surroundings

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
NAMES = tuple(f"{n}.txt" for n in range(4))
ASK = ("--policy", "keydiff(budget=96)", "--dtype", "float32", "--device", "cpu", "-n", "6")
OTHER = "0.0.1"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray without a core for workers; nodes are added to it."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    monkeypatch.setattr(ray_cluster, "ANSWERS_S", 180.0)
    monkeypatch.setattr(ray_cluster, "HEALTH_S", 180.0)
    for name, value in surroundings().items():
        monkeypatch.setenv(name, value)
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


def add(cluster: Any, cache: Path, **env: str) -> Any:
    return cluster.add_node(num_cpus=1, env_vars={"KVCLI_CACHE_DIR": str(cache), **env})


def test_documents_travel_to_another_node_and_one_with_another_version_is_refused(
    call: Call, wide_model: Path, folder: Path, shelf: Path, tmp_path: Path, cluster: Any
) -> None:
    for n, name in enumerate(NAMES):
        (folder / name).write_text(f"House {n} is blue. Its owner is Anna. " * (4 + n))
    ask = ("map", "-m", wide_model, *ASK, "-e", "Who is there?", "-e", "Where?", *NAMES, "--ordered", "-o")
    assert call(*ask, "here.jsonl", "--no-cache").code == 0

    second, older = tmp_path / "second", tmp_path / "older"
    add(cluster, second)
    older.mkdir()
    (older / "sitecustomize.py").write_text(f"import kvcli.utils.version as v\nv.__version__ = {OTHER!r}\n")
    third = add(cluster, tmp_path / "third", PYTHONPATH=str(older))
    remote, file = ("--ray", cluster.address, "--workers"), folder / "there.jsonl"
    kept = (folder / "here.jsonl").read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(kept)
    outcome = call(*ask, file.name, *remote, "2")
    errors = [line for line in outcome.err.splitlines() if "error:" in line]
    assert (outcome.code, len(errors)) == (5, 1), outcome.err
    assert OTHER in errors[0]
    assert __version__ in errors[0]
    assert file.read_bytes().startswith(kept)

    cluster.remove_node(third)
    outcome = call(*ask, file.name, *remote, "1")
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert file.read_bytes() == (folder / "here.jsonl").read_bytes()
    assert len(list((second / "readings").glob("*.kv"))) == len(NAMES), "prefills stay where they were made"
    assert not list(shelf.glob("*.kv"))
