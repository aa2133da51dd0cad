"""Folders that are made to attack: a model with Python of its own, a download folder with a ``json.py``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Kvcli

CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "ours"
class Model(LlamaForCausalLM):
    config_class = Config
class Words(PreTrainedTokenizerFast):
    pass
"""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "config": (
        "config.json",
        {"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"}},
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": [None, "ours.Words"]}},
    ),
    "upstream": (
        "config.json",
        {"model_type": "ours", "auto_map": {"AutoConfig": "some/where--ours.Config"}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_python_does_not_run(tiny_model: Path, folder: Path, kvcli: Kvcli, kind: str) -> None:
    model, mark = folder / "model", folder / "RAN"
    shutil.copytree(tiny_model, model)
    (model / "ours.py").write_text(CODE.format(mark=str(mark)))
    name, values = KINDS[kind]
    config = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**config, **values}))
    done = kvcli("ask", "-m", model, "Who?", stdin=b"y\ny\ny\ny\n")
    assert not mark.exists()
    assert done.returncode == 4, done.stderr
    assert done.stdout == b""
    (line,) = [line for line in done.stderr.decode().splitlines() if "error" in line]
    assert "needs Python code of its own" in line


def test_a_known_architecture_that_names_code_uses_the_known_one(tiny_model: Path, folder: Path, kvcli: Kvcli) -> None:
    model, mark = folder / "model", folder / "RAN"
    shutil.copytree(tiny_model, model)
    (model / "ours.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"}
    (model / "config.json").write_text(json.dumps(config))
    done = kvcli("ask", "-m", model, "Who?", "-n", "3", stdin=b"y\ny\n")
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
