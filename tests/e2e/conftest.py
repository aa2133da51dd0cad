"""Commands run as a person runs them, with a random model small enough to build in a second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import kvcli.cli as kvcli_cli
import kvcli.cli.views.progress  # has is_terminal by name; a test that replaces it must not import this first
from tests import dtype
from tests.e2e import forked

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as kvcli does, but before anything imports transformers
PROGRAM = [sys.executable, "-m", "kvcli"]
if dtype.NAME:
    PROGRAM[1:] = ["-c", f"{dtype.START}from kvcli.cli.app import main; main()"]
NO_HUB = Path(os.environ["KVCLI_CACHE_DIR"]) / "no-hub"
"""Where nothing of the hub is found. One folder for all tests: libraries read its name once."""
Kvcli = Callable[..., subprocess.CompletedProcess[bytes]]

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*words: str) -> Any:
    """A token per byte and per word that is named, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_special_tokens({"eos_token": special[0], "additional_special_tokens": special[1:]})
    tokenizer.add_tokens(list(words))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_tiny(
    path: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    window: int = 4096,
    letters: str = "abcdefgh",
    wide: bool = False,
) -> Path:
    """A random Llama that says ``letters``, with a byte-level tokenizer and a chat template, saved as a directory.

    If its weights are drawn ``wide``, what it says depends on what it was told. The letters come in pairs of opposite
    logits, so that one letter of each pair is above all other tokens after any text and in any dtype,
    and draws at a usual temperature are letters too.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import randomise

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if wide:
        randomise(model, seed=1)
    said = tokenizer(letters)["input_ids"]
    with torch.no_grad():  # answers are letters: no control bytes and no early end
        loud = torch.full((len(tokenizer), 1), 0.01)
        loud[said] = 1.0 if wide else 100.0
        model.lm_head.weight.mul_(loud)
        model.lm_head.weight[said[1::2]] = -model.lm_head.weight[said[::2]]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it says depends on what it was told."""
    return save_tiny(tmp_path_factory.mktemp("models") / "wide", wide=True)


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a signal arrives in the middle of its work."""
    return save_tiny(tmp_path_factory.mktemp("models") / "slow", layers=8, hidden=256, window=65536)


def surroundings() -> dict[str, str]:
    """No network and no colours forced."""
    dropped = {"NO_COLOR", "FORCE_COLOR", "PYTHONPATH", "KVCLI_MODEL"}
    return {
        **{k: v for k, v in os.environ.items() if k not in dropped},
        "HF_HOME": str(NO_HUB),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
        "OMP_NUM_THREADS": "1",  # on a busy machine two threads wait for each other
    }


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The same, and no cache but a temporary one."""
    return {
        **surroundings(),
        "KVCLI_CACHE_DIR": str(tmp_path / "cache"),
        "KVCLI_DATA_DIR": str(tmp_path / "data"),
        "KVCLI_CONFIG": str(tmp_path / "config.toml"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands run."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def shelf(environment: dict[str, str]) -> Path:
    """Where readings are saved."""
    return Path(environment["KVCLI_CACHE_DIR"]) / "readings"


@pytest.fixture
def kvcli(folder: Path, environment: dict[str, str]) -> Kvcli:
    """Run ``kvcli ARGS`` as a process (tests/e2e/forked.py), with nothing on standard input unless given."""

    def run(*args: str | Path, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return forked.run(
            [*PROGRAM, *map(str, args)],
            cwd=folder,
            env={**environment, **env},
            capture_output=True,
            timeout=300,
            **given,
        )

    return run


@dataclass(frozen=True)
class Outcome:
    """What a run inside this process did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Outcome]


@pytest.fixture
def call(
    folder: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Call]:
    """Run ``kvcli ARGS`` inside this process: as ``kvcli``, without the second that starting takes."""
    from kvcli.cli.app import run

    monkeypatch.chdir(folder)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "KVCLI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)

    def inside(*args: str | Path, stdin: bytes | None = None) -> Outcome:
        if stdin is not None:
            (folder.parent / "stdin").write_bytes(stdin)
            monkeypatch.setattr(sys, "stdin", (folder.parent / "stdin").open())
        capsys.readouterr()
        code = run([*map(str, args)])
        if stdin is not None:
            sys.stdin.close()
        return Outcome(code, *capsys.readouterr())

    yield inside
    signal.signal(signal.SIGTERM, before)


Validate = Callable[[Any], None]


@pytest.fixture(scope="session")
def validate() -> Validate:
    """Check an object against the schema that ships with kvcli."""
    import jsonschema

    schema = json.loads((Path(kvcli_cli.__file__).parent / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return validator.validate
