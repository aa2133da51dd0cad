"""The suite for GPUs is runnable without one: its shapes are models, and its commands are understood."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.gpu import suite
from tests.gpu.suite import SHAPES, STEPS, Step, _line
from tests.unit.bench.test_bench import CONFIG


@pytest.mark.parametrize(("shape", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("phi-3-mini", 3_821_079_552)])
def test_shapes_are_those_of_the_models(shape: str, parameters: int) -> None:
    config = AutoConfig.for_model(**json.loads((SHAPES / shape / "config.json").read_text()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.name)
def test_steps_fit_the_gpus_that_they_stand_for(step: Step) -> None:
    """By the plan, with what bitsandbytes unpacks for a product (a matrix of 14,336 by 4,096 at most) on top."""
    for policy in step.policies:
        total = suite.planned(step, policy)
        assert total > 2e9
        assert not step.gpu or total + 2 * 14336 * 4096 < step.gpu * 10**9


def test_steps_are_those_of_the_issue() -> None:
    asked = {(s.shape, s.tokens, s.weights) for s in STEPS}
    assert asked >= set(product(["llama-3.1-8b", "phi-3-mini"], ["128K", "1M"], ["bf16", "nf4"]))
    recipes = {
        policy.partition("(")[0] + policy[policy.find("+") :] * ("+" in policy) for s in STEPS for policy in s.policies
    }
    assert recipes >= {"full", "locret", "locret+kivi(bits=4)", "locret+turbo(bits=4, fill=true)"}
    assert {s.gpu for s in STEPS} >= {24, 8}
    assert {s.shape for s in STEPS if "--vs" in s.options} == {"llama-3.1-8b", "phi-3-mini"}
    assert len({s.name for s in STEPS}) == len(STEPS)


def test_a_dry_run_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(step.name in said for step in STEPS)


@pytest.fixture
def tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 8192}))
    monkeypatch.setattr(suite, "SHAPES", tmp_path)
    return "tiny"


def test_a_failure_leaves_the_others_and_the_next_run_goes_on(
    tiny_shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program itself, on the CPU."""

    def lines() -> list[str]:
        return capsys.readouterr().out.split("a GPU")[1].splitlines()[1:]

    place = ("--device", "cpu", "--dtype", "float32")
    broken = Step("broken", tiny_shape, "200", ("nothing(budget=64)",), options=place)
    step = replace(broken, name="sound", policies=("keydiff(budget=64)",))
    folder = tmp_path / "out"
    assert suite.run([broken, step], folder, "a GPU", tests=["-c", "pass"]) == 1
    table = lines()
    assert [line.split()[0] for line in table] == ["step", "kernels", "broken", "sound"]
    assert "passed" in table[1]
    assert "FAILED (2)" in table[2]
    assert re.search(r"keydiff\(budget=64\) +200 +[\d,]+/s", table[3])

    begun = []
    monkeypatch.setattr(suite, "_run", lambda command, *_, **__: begun.append(command) or (1, "nonsense"))
    assert suite.run([broken, step], folder, "a GPU", tests=["-c", "pass"]) == 1
    (command,) = begun
    assert "nothing(budget=64)" in command
    assert lines()[3] == table[3]
    assert suite.run([replace(step, tokens="100")], folder, "a GPU") == 1  # another command of this name is run
    assert "100" in begun[-1]


def test_memory_at_two_lengths_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = dict.fromkeys(("prefill_tps", "matmul_share", "decode_tps", "bandwidth_share"), 0.0)
    row |= {"recipe": "full", "skipped": None, "times_full": None}
    steps = {Step(str(n), "tiny", str(n), ("full",)): {**row, "tokens": n, "peak_bytes": n} for n in (300, 200)}
    monkeypatch.setattr(suite, "_run", lambda *_, **__: (0, ""))
    monkeypatch.setattr(
        suite,
        "_figures",
        lambda step, *_: {
            "bench": [steps[step]],
            "settings": {"model": {"weight_bytes": 1800}},
        },
    )
    assert suite.run(list(steps), tmp_path, "a GPU") == 0
    assert capsys.readouterr().out.endswith("tiny bf16, full: 1.050 times the memory at 300 as at 200 tokens\n")


def test_the_clock_ends_a_step_and_its_children(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    began = time.monotonic()
    assert suite._run([sys.executable, "-c", program], tmp_path / "log", 1) == (124, "")
    assert time.monotonic() - began < 500
    steps = [Step("late", "tiny", "200", ("full",))]
    assert suite.run(steps, tmp_path, "a GPU", limit=5, tests=["-c", "pass"]) == 0
    assert not (tmp_path / "late.json").exists()


def test_a_skipped_row_is_a_line() -> None:
    assert len(_line(STEPS[0], {"recipe": "full", "tokens": 9, "skipped": "why"}, 0)) == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and the suite would run for minutes")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.gpu.suite", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.endswith("no CUDA GPU here: nothing was measured\n")
