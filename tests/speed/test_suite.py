"""The suite for cards is runnable without one: its shapes are models, and its commands are understood."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvcli.recipe import parse
from tests.gpu.suite import SHAPES, STEPS, Step, _line


@pytest.mark.parametrize(("shape", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("phi-3-mini", 3_821_079_552)])
def test_shapes_are_those_of_the_models(shape: str, parameters: int) -> None:
    config = AutoConfig.for_model(**json.loads((SHAPES / f"{shape}.json").read_text()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.name)
def test_recipes_and_shapes_exist(step: Step) -> None:
    assert (SHAPES / f"{step.shape}.json").exists()
    assert all(parse(policy) for policy in step.policies)


def test_a_skipped_row_is_a_line() -> None:
    assert len(_line(STEPS[0], {"recipe": "full", "tokens": 9, "skipped": "why"}, 0)) == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card, and the suite would run for minutes")
def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.gpu.suite", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.endswith("no CUDA card here: nothing was measured\n")
