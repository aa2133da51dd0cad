"""``kvcli train`` as a person uses it: from files to heads that ask finds, killed in the middle and resumed."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from kvcli.retaining_heads import checkpoint as file
from kvcli.retaining_heads.trainer import saved
from tests.e2e import forked, golden
from tests.e2e.conftest import PROGRAM, Call

PROSE = "It was a quiet day in {}. Nobody came up the hill, and nobody asked why. "
FEW = ("--width", "8", "--tokens", "64-128", "--budget", "32")


@pytest.fixture
def data(folder: Path) -> tuple[str, ...]:
    """One file of each kind."""
    (folder / "book.txt").write_text("".join(PROSE.format(town) for town in ["Whitby", "Crieff", "Wooler"] * 30))
    record = {"context": "The ferry leaves at nine.", "question": "When does it leave?", "answer": "at nine"}
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    said = [("user", "The mill burned down in May.\n\nWhen did it burn?"), ("assistant", "In May.")]
    (folder / "talk.jsonl").write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}) + "\n")
    return "book.txt", "records.jsonl", "talk.jsonl"


@pytest.mark.parametrize("labels", ["prob", "logit", "prob,repeat"])
def test_from_files_to_heads_that_ask_finds(
    call: Call, tiny_model: Path, data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KVCLI_MODEL", str(tiny_model))
    ask = ("ask", "book.txt", "Who came?", "-n", "3", "--no-cache", "--policy", "locret(budget=64, stabilizers=8)")
    before = call(*ask)
    assert before.code == 4
    assert "kvcli train" in before.err
    made = call("train", *data, "--steps", "6", "--check-every", "3", "--labels", labels, "--seed", "3", *FEW)
    assert made.code == 0, made.err
    where = Path(made.out.strip())
    assert where.parent == tmp_path / "data" / "heads"
    card = file.read_card(where)
    assert (card.labels, card.seed) == (labels, 3)
    assert [d["name"] for d in card.data] == list(data)
    assert f"--labels {labels}" in card.command or labels == "prob"
    after = call(*ask)
    assert after.code == 0, after.err


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(
    call: Call, environment: dict[str, str], folder: Path, tiny_model: Path, data: tuple[str, ...]
) -> None:
    options = ("--steps", "80", "--check-every", "0", "--labels", "prob,repeat", *FEW)
    words = ["train", "-m", str(tiny_model), *data, "-o", "cut.safetensors", *options]
    checkpoint = folder / "cut.safetensors.training"
    with forked.Popen([*PROGRAM, *words], cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "cut.safetensors").exists()
    refused = call(*words, "--seed", "5")
    assert refused.code == 7
    assert "seed=0, not 5" in refused.err
    assert "resumed" not in refused.err
    refused = call("train", "-m", tiny_model, data[0], *words[-len(options) - 2 :])
    assert refused.code == 7
    assert "data=" in refused.err
    assert checkpoint.exists()
    rest = call(*words)
    assert rest.code == 0, rest.err
    assert "resumed after 50" in rest.err
    assert not checkpoint.exists()
    whole = call("train", "-m", tiny_model, *data, "-o", "whole.safetensors", *options)
    assert whole.code == 0, whole.err
    (one, _), (two, _) = (file.load(folder / f"{name}.safetensors") for name in ("whole", "cut"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ctrl_c_loses_no_finished_step(environment: dict[str, str], folder: Path, tiny_model: Path) -> None:
    (folder / "book.txt").write_text(PROSE.format("Whitby") * 90)
    words = ["train", "-m", str(tiny_model), "book.txt", "-o", "x.safetensors", "--steps", "30000", *FEW]
    checkpoint = folder / "x.safetensors.training"

    with forked.Popen([*PROGRAM, *words], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not checkpoint.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert f"{saved(checkpoint):,} steps saved in x.safetensors.training" in said
    assert not (folder / "x.safetensors").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--labels", "prob,prop"),
        ("--labels", ""),
        ("--labels", "prob,logit", "--loss", "regression"),
        ("--schedule", "step"),
        ("--pool", "4"),
        ("--rate", "2"),
        ("--tokens", "9-20"),
        ("-o", "heads.bin"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    call: Call, data: tuple[str, ...], options: tuple[str, ...]
) -> None:
    refused = call("train", "-m", "no-such-model", *data, *options)
    assert refused.code == 2
    assert refused.out == ""
    golden.check(f"error: kvcli train {' '.join(options)}", refused.err)


def test_a_fold_is_trained_resumed_and_found(
    call: Call, tiny_model: Path, data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KVCLI_MODEL", str(tiny_model))
    ask = ("ask", "book.txt", "Who came?", "-n", "3", "--no-cache", "--policy", "h2o(budget=64)+less")
    before = call(*ask)
    assert before.code == 4
    assert "kvcli train --fold less" in before.err
    options = ("--fold", "less", "--tokens", "256-300", "--budget", "32", "--policies", "h2o,knorm")
    made = call("train", *data, *options, "--steps", "3")
    assert made.code == 0, made.err
    where = Path(made.out.strip())
    assert where.parent == tmp_path / "data" / "fold"
    assert not where.with_name(where.name + ".training").exists()
    assert "is gone" in made.err
    after = call(*ask)
    assert after.code == 0, after.err
    assert call("train", *data, *options, "-o", "x.safetensors").code == 2
    assert call("train", *data, "--fold", "more").code == 2
