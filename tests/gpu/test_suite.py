"""``benchmarks/gpu.sh`` is runnable without a GPU: its steps are acted out, and none of its figures is lost."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import contact, measure, output, table
from benchmarks.gpu.measure import SHAPES, Wanted
from benchmarks.gpu.steps import STEPS, Step
from kvcli import registry
from kvcli.errors import ModelError
from kvcli.models import spec as model_spec
from kvcli.models.weights import ModelSource
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.retaining_heads.module import RetainingHeads
from kvcli.retaining_heads.module import shapes as head_shapes

ROOT = Path(__file__).parents[2]
MEASURED = {step.name: list(step.words) for step in STEPS if step.module == "benchmarks.gpu.measure"}


def options(words: list[str]) -> tuple[list[Wanted], dict[str, str]]:
    first = next(i for i, word in enumerate(words) if word.startswith("--"))
    given = dict(zip(words[first::2], words[first + 1 :: 2], strict=True))
    return [Wanted.parse(word) for word in words[:first]], given


@pytest.mark.parametrize(("shape", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("phi-3-mini", 3_821_079_552)])
def test_shapes_are_those_of_the_models(shape: str, parameters: int) -> None:
    config = AutoConfig.for_model(**json.loads((SHAPES / shape / "config.json").read_text()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("words", MEASURED.values(), ids=MEASURED)
def test_rows_fit_the_gpus_that_they_stand_for(words: list[str]) -> None:
    """By the plan, with what bitsandbytes unpacks for a product (a matrix of 14,336 by 4,096 at most) on top."""
    rows, given = options(words)
    source = ModelSource(given["--shape"], SHAPES / given["--shape"], "directory", complete=False)
    spec = replace(model_spec.spec(source, device="cpu", dtype="bfloat16", stored=given["--weights"]), device="cuda:0")
    width = RetainingHeads.like(replace(spec, layers=1)).width
    spec = replace(spec, heads_bytes=2 * spec.layers * width * (head_shapes(spec)[0][0] + spec.kv_heads))
    for row in rows:
        if row.recipe != "transformers":
            plan, _ = memory.plan_run(spec, parse(row.recipe), tokens=row.tokens, chunk=2048, question=32, answer=64)
            size = float(given["--gpu"])
            assert plan.total > 2e9
            assert not size or plan.total + 2 * 14336 * 4096 < size * 1e9


def test_the_recipes_that_are_compared_have_every_term_of_every_axis() -> None:
    named = {part.partition("(")[0] for recipe in contact.RECIPES for part in parse_terms(recipe)}
    known = {
        name for axis in ("eviction", "share", "fold", "sparse_prefill", "storage") for name in registry.names(axis)
    }
    assert named | {"dense"} >= known


def parse_terms(recipe: str) -> list[str]:
    parts, depth = [""], 0
    for letter in recipe:
        depth += (letter == "(") - (letter == ")")
        if letter == "+" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def test_the_files_of_tests_are_all_that_need_a_gpu() -> None:
    named = {name for step in STEPS for name in step.tests}
    assert all((ROOT / name).exists() for name in named)
    skipping = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__) and "skipif(not torch.cuda.is_available()" in path.read_text()
    }
    assert named >= skipping


def test_a_dry_run_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(step.name in said for step in STEPS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and the steps would run for minutes")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = ["sh", "benchmarks/gpu.sh", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_WHEELS": str(tmp_path / "none")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.endswith("no CUDA GPU here: nothing was measured\n")


def test_a_measured_step_is_acted_out_and_taken_up(tmp_path: Path) -> None:
    """A row that fails leaves the others; a second run measures what is missing only; figures and logs come back."""
    tiny_shape = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--answer", "2"]
    rehearsal = ["keydiff(budget=64)@200", "nothing@100", *tiny_shape]
    step = Step("tiny", "benchmarks.gpu.measure", rehearsal=rehearsal)
    tiny = suite.Suite(tmp_path / "figures", 300, rehearse=True)
    tiny.run(step)
    first = output.recorded(tiny.rows)
    assert [row["key"] for row in first] == ["keydiff(budget=64)@200", "nothing@100"]
    assert "unknown eviction policy" in first[1]["error"]
    assert [row["code"] for row in output.recorded(tiny.done)] == [1]
    tiny.run(replace(step, rehearsal=rehearsal[:1] + rehearsal[2:]))
    assert output.recorded(tiny.rows) == first
    assert len(tiny.rows.read_text().splitlines()) == 2
    assert [row["code"] for row in output.recorded(tiny.done)] == [0]
    suite.bring(tiny.folder, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as logs:
        assert logs.getnames() == ["tiny.log"]
    text = "\n".join(table.lines(output.recorded(tmp_path / "out" / "rows.jsonl"), output.recorded(tiny.done)))
    assert "unknown eviction policy" in text
    assert "tiny: done" in text


def test_tests_run_by_file_and_one_that_hangs_leaves_the_others(tmp_path: Path) -> None:
    good, bad, slow, broken = (tmp_path / f"test_{name}.py" for name in ("good", "bad", "slow", "broken"))
    broken.write_text("import nothing_of_this_name\n")
    good.write_text("def test_it(): pass\n")
    bad.write_text("def test_it(): assert 1 == 2\n")
    slow.write_text("import time\ndef test_it(): time.sleep(600)\n")
    tiny = suite.Suite(tmp_path / "figures", 300)
    tiny.run(Step("kernels", tests=[str(slow)], limit=1))
    tiny.run(Step("kernels", tests=[str(good), str(bad), str(broken)], limit=200))
    ends = {Path(row["key"]).stem: row["code"] for row in output.recorded(tiny.rows)}
    assert ends == {"test_good": 0, "test_bad": 1, "test_slow": 124, "test_broken": 2}
    failed = next(row for row in output.recorded(tiny.rows) if row["key"] == str(bad))
    assert failed["failed"] == 1
    assert any("test_bad.py::test_it" in line for line in failed["failures"])
    text = "\n".join(table.lines(output.recorded(tiny.rows), output.recorded(tiny.done)))
    assert all(name in text for name in ("test_bad", "test_slow", "test_broken"))
    assert "test_good" not in text


def test_the_clock_ends_a_step_and_its_children(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    began = time.monotonic()
    assert suite.process([sys.executable, "-c", program], tmp_path / "log", 1, dict(os.environ)) == 124
    assert time.monotonic() - began < 500
    late = suite.Suite(tmp_path / "figures", 5)
    late.run(STEPS[0])
    assert [row["code"] for row in output.recorded(late.done)] == [None]


@pytest.mark.parametrize("wrong", [{"error": "x"}, {"check_error": "x"}, {"ok": False}, {"code": 124}])
def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]) -> None:
    monkeypatch.setenv(output.ROWS, str(tmp_path / "rows.jsonl"))
    monkeypatch.setenv(output.STEP, "a")
    assert not output.measured("b")
    output.record({"key": "b", **wrong})
    assert not output.measured("b")
    output.record({"key": "b", "ok": True, "code": 0})
    assert output.measured("b")
    assert not output.measured("c")
    assert [row.get("ok") for row in output.recorded(tmp_path / "rows.jsonl")] == [True]
    monkeypatch.setenv(output.STEP, "other")
    assert not output.measured("b")


def test_a_row_that_was_cut_off_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": "a", "key": "b"}\n{"step": "a", "ke')
    assert output.recorded(path) == [{"step": "a", "key": "b"}]


def figures(step: str, key: str, tokens: int, prefill: float, decode: float, peak: int) -> dict[str, Any]:
    recipe = key.partition("@")[0]
    sizes = {"peak_bytes": peak, "weight_bytes": 2**30, "shape": "8b", "weights": "bf16", "machine": "gpu", "repeat": 1}
    speeds = {"prefill_s": prefill, "prefill_tps": tokens / prefill, "decode_tps": decode}
    shares = {"matmul_share": 0.5, "bandwidth_share": 0.25, "graph": False}
    return {"step": step, "key": key, "recipe": recipe, "tokens": tokens, **sizes, **speeds, **shares}


def test_figures_become_ratios_and_rows_with_their_origin() -> None:
    rows = [
        figures("a", "transformers@131072", 131072, 40.0, 10.0, 2**34),
        figures("a", "locret@131072", 131072, 10.0, 50.0, 2**31),
        figures("b", "locret@1048576", 1048576, 80.0, 50.0, 2**31),
        {"step": "a", "key": "x", "error": "out of memory"},
        {**figures("b", "full@9", 9, 1.0, 1.0, 2**31), "check_error": "prefill differs by 0.2"},
    ]
    done = [{"step": name, "code": 0, "seconds": 9, "date": "2026-11-29 10:00"} for name in "ab"]
    text = "\n".join(table.lines(rows, done))
    assert "4.00 · 5.00" in text
    assert "out of memory" in text
    assert "CHECK FAILED: prefill differs by 0.2" in text
    assert "8b bf16, locret: 1.000 times the memory at 1,048,576 as at 131,072 tokens" in text
    made = list(table.to_rows(rows, done))
    assert [(row["recipe"], row.get("prefill_times"), row.get("decode_times")) for row in made] == [
        ("transformers", None, None),
        ("locret", 4.0, 5.0),
        ("locret", None, None),
    ]
    assert all(row["command"].startswith("sh benchmarks/gpu.sh") and row["date"] == "2026-11-29" for row in made)


def test_commands_of_steps_are_understood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each program says what its options are; those of the steps are among them."""
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    for name in sorted({step.module for step in STEPS if step.module.startswith("benchmarks.")}):
        with pytest.raises(SystemExit) as end:
            importlib.import_module(name).main()
        assert end.value.code == 0
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        for step in STEPS:
            if step.module == name:
                assert {word for word in (*step.words, *step.rehearsal) if word.startswith("--")} <= known


def test_a_failed_check_leaves_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the one occasion with a GPU, a speed that is not for the docs is better than none."""

    def refuse(*_: Any) -> None:
        raise ModelError("prefill differs by 2.0e-01", "--dtype float32")

    monkeypatch.setattr(measure, "check", refuse)
    monkeypatch.setenv(output.ROWS, str(tmp_path / "rows.jsonl"))
    words = ["keydiff(budget=64)@100", "--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--answer", "2"]
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    assert measure.main() == 1
    (row,) = output.recorded(tmp_path / "rows.jsonl")
    assert row["check_error"] == "prefill differs by 2.0e-01"
    assert row["prefill_tps"] > 0
