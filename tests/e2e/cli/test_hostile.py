"""Folders that are made to attack: a model with Python of its own, a download folder with a ``json.py``."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
def test_a_models_python_does_not_run(tiny_model: Path, folder: Path, call: Any, kind: str) -> None:
    model, mark = folder / "model", folder / "RAN"
    shutil.copytree(tiny_model, model)
    (model / "ours.py").write_text(CODE.format(mark=str(mark)))
    name, values = KINDS[kind]
    config = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**config, **values}))
    done = call("ask", "-m", model, "Who?", stdin=b"y\ny\ny\ny\n")
    assert not mark.exists()
    assert (done.code, done.out) == (4, ""), done.err
    (line,) = [line for line in done.err.splitlines() if "error" in line]
    assert "needs Python code of its own" in line


def test_a_known_architecture_that_names_code_uses_the_known_one(tiny_model: Path, folder: Path, call: Any) -> None:
    model, mark = folder / "model", folder / "RAN"
    shutil.copytree(tiny_model, model)
    (model / "ours.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"}
    (model / "config.json").write_text(json.dumps(config))
    done = call("ask", "-m", model, "Who?", "-n", "3", stdin=b"y\ny\n")
    assert done.code == 0, done.err
    assert not mark.exists()


PLANTED = ("pip", "json", "torch", "numpy", "gguf", "transformers", "sitecustomize", "pypdfium2", "kvcli")


def test_a_module_of_the_working_directory_does_not_run(
    folder: Path, environment: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    """The console script through every command that starts a process: readers, OCR, a GGUF, pip, servers, engines."""
    import subprocess
    import sys

    from tests.unit.documents.makers import Page, lines, pdf
    from tests.unit.models.conftest import write_gguf

    mark = tmp_path / "RAN"
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    (folder / "a.pdf").write_bytes(pdf([Page(lines(["The dog is called Pepper."]))]))
    (folder / "a.html").write_text("<p>The dog is called Pepper.")
    (folder / "a.txt").write_text("The dog is called Pepper. " * 100)
    (folder / "q.txt").write_text("Who?")
    write_gguf(folder / "m.gguf")
    script = (
        f"import sys; sys.path[:] = {[p for p in sys.path if p]!r}\n"
        "from kvcli.cli.app import _by_engine, run\n"
        "codes, words = {}, sys.stdin.read().splitlines()\n"
        "sys.stdin = open('/dev/null')\n"
        "for line in words:\n"
        "    start = _by_engine if line.startswith('ask') else run\n"
        "    codes[line] = start(line.split())\n"
        "print(codes, file=sys.stderr)"
    )
    model, small = f"-m {tiny_model}", "--width 8 --tokens 64-128 --budget 32 --labels prob"
    commands = {
        "extract a.pdf": 0,
        "extract a.html": 0,
        f"map {model} a.pdf a.html -Q q.txt -n 2 -o out.jsonl": 0,
        f"train {model} a.txt --steps 1 --check-every 0 -o heads.safetensors {small}": 0,
        f"ask {model} a.html Who? -n 2": 0,
        "stop": 0,
        f"serve {model} --background --port 0 a.html": 0,
        "serve --stop": 0,
        f"mcp {model} --root .": 0,
        "extract a.pdf --ocr": 0,
        "models pull ./m.gguf": 0,
        "models pull smollm2-135m": 4,
    }
    variables = {
        **environment,
        "KVCLI_KEEP_ALIVE": "1m",
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens
    }
    del variables["HF_HUB_OFFLINE"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        input="\n".join(commands).encode(),
        cwd=folder,
        env=variables,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert not mark.exists(), mark.read_text()
    said = done.stderr.decode()
    assert "Pepper" in "".join(done.stdout.decode().split()), said  # how its letters are spaced is not at issue here
    assert said.strip().splitlines()[-1] == str(commands), said


def test_directions_are_not_turned(folder: Path, call: Any) -> None:
    turned = "invoice\u202egnp\u2066.txt"
    (folder / turned).write_text("")
    done = call("ask", turned, "Who?")
    assert done.code == 3
    assert "invoicegnp.txt" in done.err
    assert not {*"\u202e\u2066"} & {*done.err}


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "1" + "0" * 30), ("--temp", "nan"), ("--temp", "inf"), ("--temp", "1e-30")]
)
def test_sampling_out_of_range_is_a_usage_error(folder: Path, call: Any, option: str, value: str) -> None:
    (folder / "a.txt").write_text("The dog is called Pepper.")
    words = [] if option == "--temp" else ["--temp", "1"]
    done = call("ask", "a.txt", "Who?", *words, option, value)
    assert done.code == 2, done.err
    assert option.strip("-") in done.err


def test_a_tokenizer_that_is_too_large_is_named(tiny_model: Path, folder: Path, call: Any) -> None:
    from tests.e2e.conftest import byte_tokenizer

    shutil.copytree(tiny_model, folder / "model")
    byte_tokenizer("Pepper").save_pretrained(folder / "model")
    done = call("ask", "-m", folder / "model", "Who is Pepper?", "-n", "2")
    assert done.code == 4, done.err
    assert "its tokenizer makes the token 260, and its vocabulary has 260 tokens" in done.err


TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "merges that do not fit": lambda t: t["model"].update(continuing_subword_prefix="####", merges=[["a", "a"]]),
    "a special token that is nowhere": lambda t: t["post_processor"]["single"].insert(
        0, {"SpecialToken": {"id": "[X]", "type_id": 0}}
    ),
    "an empty table of characters": lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": ""}),
    "no token for the unknown": lambda t: t.update(model={"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}),
}


@pytest.mark.parametrize("damage", TOKENIZERS)
def test_a_tokenizer_that_panics_is_one_line(tiny_model: Path, folder: Path, kvcli: Any, damage: str) -> None:
    shutil.copytree(tiny_model, folder / "model")
    file = folder / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["aa"] = 300
    TOKENIZERS[damage](tokenizer)
    file.write_text(json.dumps(tokenizer))
    (folder / "a.txt").write_text("A dog.")
    for command in (("ask", "a.txt", "Who?", "-n", "2"), ("plan", "a.txt")):
        done = kvcli(*command, "-m", "./model")
        assert (done.returncode, done.stdout) == (4, b""), done.stderr
        error, hint = done.stderr.decode().splitlines()
        assert "model is damaged, or needs another version" in error
        assert "try: download the model again" in hint


def test_a_git_lfs_pointer_is_called_so(tiny_model: Path, folder: Path, call: Any) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"
    for name in ("model.safetensors", "config.json"):
        shutil.copytree(tiny_model, folder / name)
        (folder / name / name).write_text(pointer)
        done = call("ask", "-m", folder / name, "Who?")
        assert done.code == 4
        assert "is a Git LFS pointer" in done.err


def test_one_changed_number_is_another_model(tiny_model: Path, folder: Path) -> None:
    from kvcli.models import weights

    shutil.copytree(tiny_model, folder / "model")
    file = folder / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    before = weights.fingerprint(folder / "model")
    data[len(data) // 2 + 4321] ^= 1
    file.write_bytes(data)
    assert weights.fingerprint(folder / "model") != before


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_closed_stream(folder: Path, environment: dict[str, str], stream: str) -> None:
    import subprocess
    import sys

    (folder / "a.txt").write_text("The dog is called Pepper.")
    number = {"stdin": 0, "stdout": 1, "stderr": 2}[stream]
    name = "-" if stream == "stdin" else "a.txt"
    program = f'exec "$0" -m kvcli extract {name} {number}{"<" if number == 0 else ">"}&-'
    done = subprocess.run(
        ["sh", "-c", program, sys.executable],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == (3 if stream == "stdin" else 0), done.stderr


@pytest.mark.parametrize("command", ["ask", "extract"])
def test_a_pipe_that_is_waited_for_is_named(
    command: str, tiny_model: Path, folder: Path, call: Any, monkeypatch: Any
) -> None:
    import os
    import threading
    import time

    from kvcli.cli.views import terminal

    os.mkfifo(folder / "late")
    said, notes = threading.Event(), []

    def note(_label: str, text: str, **_: object) -> None:
        notes.append(text)
        said.set()

    def write() -> None:
        said.wait(300)
        for _ in range(3000):  # without a reader the name cannot be opened
            try:
                pipe = os.open(folder / "late", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                time.sleep(0.1)
            else:
                os.write(pipe, b"The dog is called Pepper.")
                os.close(pipe)
                return

    monkeypatch.setattr(terminal, "note", note)
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    more = ("Who?", "-m", tiny_model, "-n", "2") if command == "ask" else ()
    done = call(command, "late", *more)
    writer.join(600)
    assert done.code == 0
    assert notes[0] == "waiting for late, a pipe"


@pytest.mark.parametrize(
    ("policy", "bound", "reason"),
    [
        ("keydiff", "9.8 KiB", "the most that kvcli reads"),
        ("full", "64.0 KiB", "and there is room for 4,094 tokens"),  # a window of 4,096, question and answer in it
    ],
)
def test_standard_input_without_an_end_is_bounded_and_the_bound_said(
    call: Any, monkeypatch: Any, tiny_model: Path, policy: str, bound: str, reason: str
) -> None:
    if policy != "full":
        monkeypatch.setattr("kvcli.cli.request.LARGEST", 10_000)
    words = b"all work and no play " * 10_000
    done = call("ask", "-m", tiny_model, "--policy", policy, "Who?", stdin=words)
    assert done.code == 3
    assert f"standard input has more than {bound}, {reason}" in done.err


def test_a_text_of_too_many_tokens_is_refused_before_they_are_made(monkeypatch: Any) -> None:
    from kvcli.errors import ResourceError
    from kvcli.planning import memory

    monkeypatch.setattr(memory, "host_available", lambda: 14_000_000)  # of 100,000 tokens
    memory.check_text("word " * 90_000, lambda text: len(text) // 5)
    with pytest.raises(ResourceError, match="about 110,000 tokens"):
        memory.check_text("word " * 110_000, lambda text: len(text) // 5)
