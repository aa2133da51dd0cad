"""``kvcli plan``: the same numbers as ``ask``, without torch; GPUs, comparisons, rates, and what does not fit."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvcli.models import spec as model_spec
from kvcli.models.weights import ModelSource
from kvcli.planning.estimate import Target
from kvcli.recipe import parse
from kvcli.types import WEIGHTS
from kvcli.utils.sizes import format_bytes
from tests.e2e import golden
from tests.e2e.conftest import Call, Kvcli, Validate

TEXT = (
    "Queequeg was a native of Kokovoko — an island far away. <|end|> It is not down in any map; true places are not. "
)
POLICY = ("--policy", "keydiff(budget=200)")


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT * 8)
    return folder / "book.txt"


def plan(call: Call, *args: str | Path, code: int = 0) -> dict[str, object]:
    outcome = call("plan", "--json", *args)
    assert outcome.code == code, outcome.err
    found: dict[str, object] = outcome.json["plan"]
    return found


@pytest.mark.parametrize("how", [[], ["--raw"], ["-s", "Be brief."]])
@pytest.mark.parametrize("recipe", ["keydiff(budget=200)", "snapkv(budget=200)", "full"])
def test_ask_runs_what_was_planned(call: Call, tiny_model: Path, book: Path, how: list[str], recipe: str) -> None:
    asked = ("-m", tiny_model, "-n", "12", "--policy", recipe, "--dtype", "float32", "--device", "cpu", *how)
    planned = plan(call, *asked, book, "-e", "Who?")
    outcome = call("ask", "--json", *asked, book, "Who?")
    assert outcome.code == 0, outcome.err
    answer = outcome.json
    assert planned["document"]["tokens"] == answer["document"]["tokens"] > 500  # type: ignore[index]
    assert planned["memory"]["total_bytes"] == answer["memory"]["planned_bytes"]  # type: ignore[index]
    assert planned["kept"] == answer["kv"]["kept"]
    assert planned["recipe"] == answer["kv"]["recipe"]
    assert planned["model"]["fingerprint"] == answer["model"]["fingerprint"]  # type: ignore[index]


def test_the_recipe_is_the_one_that_ask_would_choose(call: Call, tiny_model: Path, book: Path) -> None:
    answer = call("ask", "--json", "-m", tiny_model, "-n", "2", book, "Who?").json
    assert plan(call, "-m", tiny_model, book)["recipe"] == answer["kv"]["recipe"]


def test_a_saved_reading_is_no_larger_than_planned_and_not_much_smaller(
    call: Call, tiny_model: Path, book: Path, folder: Path
) -> None:
    for recipe in ("keydiff(budget=200)", "full", "knorm(budget=300, victims=merge)", "snapkv(budget=100, tail=20)"):
        size = int(str(plan(call, "-m", tiny_model, "--policy", recipe, book)["disk_bytes"]))
        assert call("ask", "-m", tiny_model, "-n", "1", "--policy", recipe, book, "Who?").code == 0
        (file,) = (folder.parent / "cache" / "readings").glob("*.kv")
        real = file.stat().st_size
        file.unlink()
        assert real <= size <= 1.6 * real


def test_it_imports_no_torch(tiny_model: Path, book: Path, environment: dict[str, str]) -> None:
    program = (
        "import sys; from kvcli.cli.app import run;"
        f"code = run(['plan', '-m', {str(tiny_model)!r}, {str(book)!r}, '--gpu', '8GB', '--what-if', 'full',"
        " '--what-if', 'locret(budget=200)', '--what-if', 'knorm(budget=9)', '-q', '--json']);"
        "loaded = {'torch', 'transformers', 'kvcli_kernels'} & set(sys.modules);"
        "print(sorted(loaded), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    assert done.stderr.strip() == "[] 0"


def test_every_policy_can_be_planned_without_torch(environment: dict[str, str]) -> None:
    program = (
        "import sys; from kvcli import recipe, registry;"
        "[recipe.parse(n) for n in registry.names('eviction')];"
        "[recipe.parse('full+' + n) for n in registry.names('storage')];"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False"


def test_json_is_as_the_schema_says(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    outcome = call("plan", "--json", "-m", tiny_model, book, *POLICY, "--what-if", "full", "--gpu", "3060")
    validate(outcome.json)
    outcome = call("plan", "--json", "-m", tiny_model, "--tokens", "99999", "--policy", "full")
    validate(outcome.json)
    assert outcome.code == 6
    assert outcome.json["plan"]["memory"] is None


def test_lines_for_a_person(call: Call, tiny_model: Path, book: Path) -> None:
    out = call("plan", "-m", tiny_model, book, *POLICY, "--what-if", "full", "--what-if", "knorm(budget=77)").out
    for label in ("document", "weights", "KV cache", "workspace", "answer", "activations", "memory", "disk", "time"):
        assert f"\n{label}" in f"\n{out}"
    assert re.search(r"fits +yes · .*whole document", out)
    assert re.search(r"time +unknown", out)
    assert [line.split("  ")[0] for line in out.splitlines()[-3:]] == [
        "keydiff 200",
        "full",
        "knorm 77",
    ]


def test_times_are_this_machines_own(call: Call, tiny_model: Path, book: Path, folder: Path) -> None:
    rates = folder.parent / "cache" / "rates.json"
    for n in (1, 2):
        assert call("ask", "-m", tiny_model, "-n", "12", *POLICY, book, "Who?", "--rebuild").code == 0
        found = plan(call, "-m", tiny_model, book, *POLICY)
        assert found["measured_runs"] == n
        assert float(str(found["prefill_tps"])) > 0
        assert float(str(found["decode_tps"])) > 0
    assert stat.S_IMODE(rates.stat().st_mode) == 0o600
    assert "(median of 2 runs)" in call("plan", "-m", tiny_model, book, *POLICY).out
    assert plan(call, "-m", tiny_model, book, "--policy", "knorm(budget=200)")["prefill_tps"] is None
    assert plan(call, "-m", tiny_model, book, *POLICY, "--gpu", "4090")["prefill_tps"] is None
    assert call("ask", "-m", tiny_model, "-n", "12", *POLICY, book, "Who?").code == 0  # a saved reading reads nothing
    assert plan(call, "-m", tiny_model, book, *POLICY)["measured_runs"] == 2
    assert call("prefill", "-m", tiny_model, *POLICY, book, "--rebuild").code == 0
    assert plan(call, "-m", tiny_model, book, *POLICY)["measured_runs"] == 3


def test_stats_compare_the_peak_with_the_plan(call: Call, tiny_model: Path, book: Path) -> None:
    outcome = call("ask", "-m", tiny_model, "-n", "2", *POLICY, book, "Who?", "--stats")
    assert ", measured " in outcome.err
    assert " %" in outcome.err
    found = call("ask", "-m", tiny_model, "-n", "2", *POLICY, book, "Who?", "--json", "--no-cache").json["memory"]
    off = found["peak_bytes"] - found["baseline_bytes"] - found["planned_bytes"]
    assert found["plan_error_percent"] == pytest.approx(100 * off / found["planned_bytes"], abs=0.01)


def test_the_largest_budget_is_the_largest(tiny_model: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("-m", tiny_model, "--tokens", "3000", "-n", "20", "--dtype", "float32", "--policy", "knorm(stabilizers=8)")
    whole = plan(call, *args)
    usable = whole["memory"]["total_bytes"] + 10_000  # type: ignore[index]
    monkeypatch.setattr(Target, "this", classmethod(lambda cls, _device: cls("here", usable)))
    largest = int(str(plan(call, *args)["largest_budget"]))
    assert 1024 <= largest < 3000
    assert plan(call, *args, "--budget", str(largest))["fits"]
    refused = call("plan", *args, "--budget", str(largest + 1))
    assert refused.code == 5
    assert f"--budget {largest}" in refused.err
    assert "fits        no" in refused.out


def test_a_prefill_step_is_larger_on_a_gpu(call: Call, tiny_model: Path) -> None:
    def planned(*size: str) -> dict[str, object]:
        return plan(call, "-m", tiny_model, "--tokens", "9000", "--gpu", "8GB", *POLICY, *size)

    assert planned() == planned("--chunk-size", "1024")  # a quarter of the model's window
    assert planned() != planned("--chunk-size", "512")


def test_what_fits_nowhere(call: Call, tiny_model: Path) -> None:
    outcome = call("plan", "-m", tiny_model, "--tokens", "3000", "--gpu", "0.1GB", *POLICY)
    assert outcome.code == 5
    assert "no budget fits" in outcome.out
    assert "(102.4 MiB) has 0 B" in outcome.err


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["--gpu", "potato"], 2),
        (["--gpu", "0GB"], 2),
        (["--weights", "int3"], 2),
        (["--kv-bits", "5"], 2),
        (["--what-if", "nosuch"], 2),
        (["--budget", "0"], 2),
        (["--policy", "full", "--budget", "9"], 2),
        (["--gpu", "3060", "--device", "cpu"], 2),
        (["--device", "potato"], 2),
        (["--dtype", "int4"], 2),
        (["--frobnicate"], 2),
        (["nosuch.txt"], 3),
        (["-m", "./nosuch"], 4),
    ],
)
def test_bad_input(call: Call, tiny_model: Path, book: Path, given: list[str], code: int) -> None:
    outcome = call("plan", "-m", tiny_model, book, *given)
    assert outcome.code == code
    golden.check(f"error: kvcli plan {' '.join(given)}", outcome.err, hide={str(book): "book.txt"})


def test_no_document(call: Call, tiny_model: Path, book: Path) -> None:
    assert call("plan", "-m", tiny_model).code == 3
    assert call("plan", "-m", tiny_model, "--tokens", "5", book).code == 2


def test_as_a_program(kvcli: Kvcli, tiny_model: Path) -> None:
    done = kvcli("plan", "-m", tiny_model, "-", "--json", stdin=TEXT.encode())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["document"]["tokens"] > 100


def test_fewer_bits_are_less_once_it_is_read(call: Call, tiny_model: Path, book: Path) -> None:
    sizes = {}
    for bits in (16, 8, 4, 2):
        outcome = call("plan", "--json", "-m", tiny_model, book, *POLICY, "--kv-bits", str(bits), "--dtype", "bfloat16")
        made = outcome.json["plan"]
        sizes[bits] = made["held_bytes"], made["bits"]
        mean = 2 * 2 * 8 * 4  # the policy's running sum of keys: layers, heads, numbers of 4 bytes
        assert made["memory"]["fill_bytes"] == 2 * 2 * 200 * (2 * 2 * 8 + 8) + mean  # units: it is read exactly
        assert "arithmetic only" not in outcome.err
    numbers = 2 * 2 * 200 * 2 * 8  # layers, heads, units, key and value, head dim
    groups = 2 * 2 * (7 * 8 + 200)  # of keys: 7 of 32 tokens for 8 channels; of values: one a token
    assert sizes[16] == (numbers * 2, 16)
    assert sizes[8] == (numbers + 2 * 2 * 200 * 8, 12)
    assert sizes[4] == (numbers // 2 + 4 * groups, round(8 * (numbers // 2 + 4 * groups) / numbers, 4))
    assert sizes[2] == (numbers // 4 + 4 * groups, round(8 * (numbers // 4 + 4 * groups) / numbers, 4))


def test_fewer_bits_of_weights_are_less(call: Call, tiny_model: Path, book: Path) -> None:
    weights = {
        held: plan(call, "-m", tiny_model, book, "--weights", held)["memory"]["weights_bytes"]  # type: ignore[index]
        for held in ("bf16", "int8", "nf4")
    }
    assert weights["bf16"] > weights["int8"] > weights["nf4"]


def test_weights_by_hand(tiny_model: Path) -> None:
    """Of a matrix of 64 by 32: one byte a number and a float32 a row, or half a byte and a float32 every 64."""
    source = ModelSource("tiny", tiny_model, "directory")
    plain, eight, four = (
        model_spec.spec(source, device="cpu", dtype="float16", stored=held).weight_bytes for held in WEIGHTS
    )
    matrices = 2 * [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)]
    numbers, rows = sum(a * b for a, b in matrices), sum(a for a, _ in matrices)
    assert plain - eight == 2 * numbers - (numbers + 4 * rows)
    assert plain - four == 2 * numbers - (numbers // 2 + 4 * numbers // 64)


def test_a_gpu_knows_its_memory() -> None:
    assert Target.gpu("8GB").usable == Target.gpu("RTX 3070").usable
    assert Target.gpu("4090").usable == 24 * 2**30 - 600 * 2**20
    assert format_bytes(Target.gpu("rtx3060").usable) == "11.4 GiB"


def test_a_window_that_is_too_short_names_the_policy_that_reads_on(call: Call, tiny_model: Path) -> None:
    outcome = call("plan", "-m", tiny_model, "--tokens", "100000", "--policy", str(parse("full")))
    assert outcome.code == 6
    assert "keydiff" in outcome.out
    assert "--policy 'keydiff" in outcome.err


@pytest.mark.parametrize(("written", "tokens"), [("5000", 5000), ("5K", 5120), ("1m", 1024**2), ("5_000", 5000)])
def test_tokens_may_be_written_in_thousands(call: Call, tiny_model: Path, written: str, tokens: int) -> None:
    assert call("plan", "--json", "-m", tiny_model, "--tokens", written).json["plan"]["document"]["tokens"] == tokens


@pytest.mark.parametrize("written", ["0", "-1", "K", "5G", "1e9", ""])
def test_no_number_of_tokens(call: Call, tiny_model: Path, written: str) -> None:
    assert call("plan", "-m", tiny_model, f"--tokens={written}").code == 2
