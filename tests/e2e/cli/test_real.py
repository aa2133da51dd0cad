"""The default model, as a person meets it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e import forked
from tests.e2e.conftest import PROGRAM, Validate, surroundings

pytestmark = pytest.mark.real

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def ask(folder: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    return forked.run([*PROGRAM, "ask", *args], cwd=folder, env=surroundings(), capture_output=True, timeout=1200)


@pytest.fixture(autouse=True, scope="module")
def model() -> Path:
    """Its directory. Fetched once for the test run, by whichever test comes first."""
    from kvcli.cli.views.progress import run_with_progress
    from kvcli.errors import KvcliError
    from kvcli.models.default_model import DEFAULT
    from kvcli.models.resolve import resolve

    try:
        return Path(run_with_progress(resolve(DEFAULT), quiet=True).path)
    except KvcliError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture
def haystack(folder: Path) -> Path:
    """About 3,000 tokens, with one fact in the middle."""
    needle = "The pass key is 71432. Remember it. 71432 is the pass key. "
    (folder / "haystack.txt").write_text(FILLER * 65 + needle + FILLER * 65)
    return folder


def test_a_fact_is_found_on_a_third_of_the_memory(haystack: Path, validate: Validate) -> None:
    done = ask(haystack, "--json", "-n", "30", "--budget", "1024", "haystack.txt", "What is the pass key?")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    validate(answer)
    assert "71432" in answer["answer"]
    assert answer["document"]["tokens"] > 2500
    assert answer["kv"]["kept"] == 1024


def test_longer_than_the_window_is_read_or_refused(folder: Path, model: Path) -> None:
    """Refused by the model as it is; read by one that is told of a shorter window, for 8,192 tokens take a minute."""
    (folder / "long.txt").write_text(FILLER * 365)
    refused = ask(folder, "--policy", "full", "long.txt", "What colour is the sky?")
    assert refused.returncode == 6
    assert b"8,192" in refused.stderr
    (folder / "short").mkdir()
    for file in model.iterdir():
        (folder / "short" / file.name).symlink_to(file)
    (folder / "short" / "config.json").unlink()
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (folder / "short" / "config.json").write_text(json.dumps(config))
    (folder / "long.txt").write_text(FILLER * 50)
    refused = ask(folder, "-m", "short", "--policy", "full", "long.txt", "What colour is the sky?")
    assert refused.returncode == 6
    assert b"1,024" in refused.stderr
    read = ask(folder, "-m", "short", "-n", "20", "long.txt", "What colour is the sky?")
    assert read.returncode == 0, read.stderr
    assert b"keeping 256 of 1,248 tokens" in read.stderr
