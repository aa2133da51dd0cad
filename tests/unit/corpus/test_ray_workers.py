"""Workers on a real Ray cluster of this machine: the answers are those of one process, whatever dies."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvcli
from kvcli.corpus.task import DocumentTask, Question, Settings, corpus
from kvcli.corpus.worker import Answered, DocumentFinished, Failed, LocalWorkers, Stopped, Worker
from kvcli.errors import KvcliError, ResourceError
from kvcli.events import Notice
from kvcli.planning import speed_history
from kvcli.recipe import parse
from kvcli.utils.version import __version__
from tests.dtype import NAME
from tests.e2e.conftest import save_tiny

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

PLANTED = ("safetensors", "tokenizers", "regex", "tqdm", "filelock", "sitecustomize", "kvcli", "psutil")
QUESTIONS = [Question("Who is there?"), Question("Where?", id=7)]


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with documents, and with modules that tell when they are imported."""
    folder = tmp_path_factory.mktemp("here")
    for n in range(5):
        (folder / f"{n}.txt").write_text(f"House {n} is blue. Its owner is Anna. " * (4 + n))
    (folder / "bad.txt").write_bytes(b"\x00\x01\x02" * 99)
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RAN')!r}, 'a').write({name!r})\nraise SystemExit\n")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = save_tiny(tmp_path_factory.mktemp("model"), wide=True)
    return Settings(model=str(path), policy="keydiff(budget=96)", chunk=64, max_tokens=24, device="cpu", dtype=NAME)


@pytest.fixture(scope="module")
def tasks(here: Path) -> list[DocumentTask]:
    files = [*(f"{n}.txt" for n in range(5)), "bad.txt"]
    assert here
    return list(corpus(files, (), QUESTIONS, "").tasks)


@pytest.fixture(scope="module")
def alone(settings: Settings, tasks: list[DocumentTask]) -> Any:
    """The worker of this process, and what it says."""
    model = kvcli.load_model(settings.model, device="cpu", dtype=settings.dtype, find_heads=False)
    return model, [*LocalWorkers(Worker(model, settings)).items(tasks, never)]


def by_key(items: list[Any]) -> dict[str, Any]:
    answers = {item.record["key"]: item.record for item in items if isinstance(item, Answered)}
    return answers | {item.task.failure_key: str(item.error) for item in items if isinstance(item, Failed)}


def test_a_killed_worker_loses_nothing_and_planted_modules_do_not_run(
    here: Path, settings: Settings, tasks: list[DocumentTask], alone: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two workers answer as one; one is killed in the middle of a document; then all are told to stop."""
    from kvcli.corpus.ray_cluster import nodes, rates
    from kvcli.corpus.ray_workers import RayWorkers

    model, expected = alone
    items, killed, refused = list[Any](), 0, ""
    with RayWorkers(settings, model.spec.fingerprint, workers=2) as workers:
        for item in workers.items(tasks, never):
            items.append(item)
            if isinstance(item, Answered) and not killed:
                tasks_of = ((slot.pid, slot.task) for slot in workers._slots)
                killed = next((pid for pid, task in tasks_of if task and task.sha256 == item.task.sha256), 0)
                os.kill(killed, signal.SIGKILL)
        assert killed
        assert any(isinstance(item, Notice) for item in items), "it is said"
        assert by_key(items) == by_key(expected)
        keys = [item.record["key"] for item in items if isinstance(item, Answered)]
        assert len(keys) == len(set(keys)), "nothing is answered twice"
        assert {i.task.name for i in items if isinstance(i, DocumentFinished)} == {f"{n}.txt" for n in range(5)}

        assert [node["kvcli"] for node in nodes(ray)] == [__version__]
        recipe = parse("keydiff(budget=96)")
        speed_history.record(model.spec, recipe, read=4000, read_s=2.0, said=80, said_s=4.0)
        own = replace(settings, dtype=model.spec.dtype)
        ((_, count, speed),) = rates(ray, model.spec, recipe, own, workers=1, cpus=1)
        assert (count, speed) == (1, speed_history.measured(model.spec, recipe))
        assert speed.prefill
        try:
            ray.get(next(slot for slot in workers._slots if slot.pid).actor.load.remote("0.0.0"))
        except ray.exceptions.RayTaskError as error:
            refused = str(KvcliError.of(error.cause))
        assert "0.0.0" in refused
        assert __version__ in refused

        seen, asked = list[Any](), (Question("Again?"),) * 9
        again = [DocumentTask(t.name, t.sha256, asked, tuple("abcdefghi"), "f", size=t.size) for t in tasks[:5]]
        running = workers.items(again, lambda: any(isinstance(i, Answered) for i in seen))
        with pytest.raises(Stopped):
            seen.extend(running)
        assert 0 < sum(isinstance(item, Answered) for item in seen) < 45
    assert not (here / "RAN").exists(), (here / "RAN").read_text()
    assert capfd.readouterr().out == "", "stdout is for answers, also if a worker dies"


def test_an_address_at_which_no_ray_answers_is_an_error_at_once(settings: Settings) -> None:
    from kvcli.corpus.ray_workers import RayWorkers

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # a port that nobody listens at
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", "nowhere.invalid:6379"):
            with pytest.raises(ResourceError, match=address), RayWorkers(settings, "", address=address):
                pass
    for address in ("127.0.0.1", "ray://127.0.0.1:1", "127.0.0.1:99999"):
        with pytest.raises(KvcliError, match=address), RayWorkers(settings, "", address=address):
            pass
