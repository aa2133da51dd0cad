"""``kvcli bench``: no figure without a passed check, arithmetic that adds up, and the manners of a command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaForCausalLM

from kvcli.bench import check, llamacpp, roofline, run
from kvcli.bench.roofline import full_flop, prefill_flop
from kvcli.errors import InputError, ModelError
from kvcli.models import cpu_linear
from kvcli.models.cpu_linear import CpuDecodeLinear
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.random_weights import NullTokenizer, build
from kvcli.recipe import Recipe, parse
from kvcli.storage.base import KVStorage
from kvcli.storage.dense import Dense
from tests import tiny
from tests.e2e.conftest import Call, Validate, call, environment, folder, tiny_model, validate  # noqa: F401

CONFIG = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "shape.json").write_text(json.dumps(CONFIG))
    return tmp_path / "shape.json"


@pytest.fixture(autouse=True)
def short_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits from small buffers and few repetitions: no test here depends on the figure."""
    monkeypatch.setattr(roofline, "_BUFFER", {"cpu": 2**20})
    monkeypatch.setattr(roofline, "_ENOUGH", 0.0)


def end(events):
    while True:
        try:
            next(events)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("family", ["llama", "mistral-window", "phi3-longrope", "gemma3"])
@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=32)", "snapkv(budget=32)", "locret(budget=32)"])
def test_what_is_right_passes(family: str, recipe: str) -> None:
    model = replace(tiny.load(family), tokenizer=NullTokenizer())
    found = check.check(model, parse(recipe))
    assert found.prefill < 1e-4
    assert found.decode < 1e-4


@pytest.mark.parametrize("broken", ["prefill", "decode", "storage"])
def test_what_is_wrong_gets_no_figure(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(tiny.load("llama"), tokenizer=NullTokenizer())
    recipe = parse("full")
    if broken == "prefill":  # keys at wrong positions
        rotate = model.rotary.rotate
        monkeypatch.setattr(
            model.rotary, "rotate", lambda i, x, p: rotate(i, x, range(len(p)) if x.shape[0] == 2 else p)
        )
    elif broken == "decode":
        monkeypatch.setattr("kvcli.engine.generate.sample", lambda logits, *_: logits.argmin().view(1))
    else:

        class Deaf(KVStorage):
            name = "deaf"

            def freeze(self, survivors):
                return Dense().freeze(replace(survivors, v=-survivors.v))

        recipe = Recipe(recipe.policy, Deaf())
    with pytest.raises(ModelError, match=f"so it is not timed: {broken}"):
        check.check(model, recipe)


def test_weights_of_few_bits_are_measured_by_themselves(tmp_path: Path) -> None:
    model = replace(of_whole_blocks(), tokenizer=NullTokenizer())
    assert check.check(model, parse("full")).weights == 0
    assert cpu_linear.map_packed(model.module, tmp_path) > 0
    found = check.check(model, parse("full+int8"))
    assert found.prefill < 1e-4
    assert 0 < found.weights < 0.12
    assert found.hold > 0
    for layer in model.module.modules():
        if isinstance(layer, CpuDecodeLinear):
            layer.packed = layer.packed._replace(blocks=layer.packed.blocks.flip(0))
    with pytest.raises(ModelError, match="so it is not timed: weights"):
        check.check(model, parse("full"))


def of_whole_blocks() -> Model:
    config = tiny.FAMILIES["llama-tied"]()
    config.update({"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128})
    return wrap(tiny.randomise(LlamaForCausalLM(config), 1), None, name="llama", fingerprint=None)


def test_the_answer_is_as_long_as_asked_and_the_text_is_read_whole() -> None:
    model = replace(tiny.load("llama"), tokenizer=NullTokenizer(), eos=frozenset(range(97)))
    speed = end(run.measure(model, parse("keydiff(budget=32)"), 200, 5, chunk=64))
    assert (speed.tokens, speed.kept) == (200, 32)
    assert speed.prefill_s > 0 < speed.decode_s
    unit = 2 * 2 * 8 * 4 * 3  # key and value of two heads of 8 numbers in float32, three layers
    assert speed.kv_bytes == 32 * unit
    assert speed.decode_bytes == model.read_bytes + (32 + run.QUESTION + 2) * unit


def test_reading_everything_at_once_needs_the_arithmetic_of_one_pass() -> None:
    spec = tiny.load("llama").spec
    assert prefill_flop(spec, parse("full"), tokens=300, chunk=300) == full_flop(spec, 300)
    for chunk in (1, 64, 100):  # the triangle is cut into chunks without loss
        assert prefill_flop(spec, parse("full"), tokens=300, chunk=chunk) == pytest.approx(full_flop(spec, 300))
    bounded = prefill_flop(spec, parse("keydiff(budget=32)"), tokens=300, chunk=64)
    assert bounded < full_flop(spec, 300)


def test_layer_arithmetic_is_that_of_the_weights() -> None:
    model = tiny.load("llama")
    linear = sum(m.weight.numel() for m in model.module.model.layers.modules() if isinstance(m, torch.nn.Linear))
    one = full_flop(model.spec, 1) - 4 * model.spec.layers * model.spec.heads * model.spec.head_dim
    assert one == 2 * linear


def test_an_embedding_that_is_not_the_head_is_not_read_for_a_token() -> None:
    model = tiny.load("llama")
    assert model.read_bytes == model.spec.weight_bytes - 97 * 32 * 4


def test_ceilings_are_positive() -> None:
    assert roofline.matmul(tiny.load("llama").spec, 8) > 0
    assert roofline.bandwidth("cpu") > 0


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}, {"model_type": "qwen2"}, {"model_type": "phi3"}])
def test_random_weights_of_a_config(config: Path, change: dict[str, object]) -> None:
    extra = {"pad_token_id": 0} if change.get("model_type") == "phi3" else {}
    config.write_text(json.dumps(CONFIG | change | extra))
    model = build(config, device="cpu", dtype="float32")
    assert all(p.device.type == "cpu" and bool(p.isfinite().all()) for p in model.module.parameters())
    tied = model.module.get_input_embeddings().weight is model.module.get_output_embeddings().weight
    assert tied == bool(change.get("tie_word_embeddings"))
    assert check.check(model, parse("full")).prefill < 1e-4


@pytest.mark.parametrize(
    ("text", "error"), [(None, InputError), ("{", ModelError), ("[]", ModelError), ('{"model_type": "no"}', ModelError)]
)
def test_no_config_is_said_in_one_line(config: Path, text: str | None, error: type[Exception]) -> None:
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(error) as found:
        build(config)
    assert "\n" not in str(found.value)


def test_a_table_and_json(config: Path, call: Call, validate: Validate) -> None:  # noqa: F811
    words = ["bench", "--random-weights", config, "-p", "128,1K", "-g", "4", "--vs", "full", "--dtype", "float32"]
    done = call(*words, "--policy", "keydiff", "--policy", "full", "--budget", "64")
    assert done.code == 0, done.err
    *table, last = done.out.splitlines()
    found = json.loads(last)
    validate(found)
    assert table[0].startswith("recipe")
    names = [(row["recipe"], row["tokens"], row["skipped"] is None) for row in found["bench"]]
    assert names == [
        (name, tokens, tokens == 128 or name != "full")
        for tokens in (128, 1024)
        for name in ("keydiff(budget=64)", "full", "transformers")
    ]
    assert set(found["bench"][0]["times_full"]) == {"prefill", "decode"}
    beside = [line.split(":")[0] for line in table if line.endswith(" times as fast as transformers")]
    assert beside == ["keydiff(budget=64) at 128", "full at 128", "keydiff(budget=64) at 1,024"]
    assert any("full at 1,024: " in line for line in table)  # its 1,024 positions leave no room for an answer


def test_a_saved_model_with_json_alone(tiny_model: Path, call: Call, validate: Validate) -> None:  # noqa: F811
    packed = call("bench", "-m", tiny_model, "-p", "100", "-g", "2", "--policy", "full+int8")
    *table, last = packed.out.splitlines()
    assert table[1].endswith(f"100 at {json.loads(last)['bench'][0]['bits']:.4g} bits")
    done = call("bench", "-m", tiny_model, "-p", "100", "-g", "2", "--json", "-q")
    assert (done.code, done.err) == (0, "")
    validate(done.json)


LLAMA = """\
import json, os

class Llama:
    '''llama.cpp's interface, which notes what it is given.'''

    def __init__(self, path, *, n_ctx, **options):
        print("a line of its own on standard output")
        if "crash" in path:
            os.abort()
        if "damaged" in path:
            raise ValueError("no such model")
        self.path, self.n_ctx, self.given = path, n_ctx, [0]

    def reset(self):
        self.given.append(0)

    def eval(self, tokens):
        self.given[-1] += len(tokens)
        assert self.given[-1] <= self.n_ctx

    def sample(self, temp):
        assert temp == 0
        return 5

    def close(self):
        with open(self.path + ".json", "w") as file:
            json.dump(self.given, file)
"""


def test_llamacpp_reads_and_decodes_as_much(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(json.dumps(CONFIG))
    model, file = build(config, device="cpu", dtype="float32"), tmp_path / "m.gguf"
    file.write_bytes(bytes(100))
    (tmp_path / "llama_cpp.py").write_text(LLAMA)
    monkeypatch.syspath_prepend(str(tmp_path))
    speed = llamacpp.measure(model, file, 300, 4, chunk=64, repeat=2)
    given = json.loads((tmp_path / "m.gguf.json").read_text())
    assert given[2::2] == [300 + 32 + 3] * 2  # text, question, and each token but the last
    assert (speed.tokens, speed.kept) == (300, 300)
    assert speed.kv_bytes == 300 * model.spec.row_bytes // 2
    assert min(speed.prefill_s, speed.ttft_s, speed.decode_s) > 0
    for name, said in (("crash", "ended with -6"), ("damaged", "no such model")):
        with pytest.raises(ModelError, match=said):
            llamacpp.measure(model, tmp_path / f"{name}.gguf", 300, 4, chunk=64)


def test_llamacpp_needs_its_package_and_a_gguf(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert call("bench", "--vs", "llama.cpp").code == 2
    fake = ModuleType("llama_cpp")
    fake.__spec__ = ModuleSpec("llama_cpp", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    done = call("bench", "--vs", "full,llama.cpp", "-m", str(tmp_path))
    assert (done.code, "GGUF" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--vs", "half"], 2),
        (["--vs", "full,half"], 2),
        (["-p", "many"], 2),
        (["-g", "1"], 2),
        (["--policy", "full", "--budget", "9"], 2),
        (["--random-weights", "nowhere.json"], 3),
        (["--random-weights", "x", "-m", "y"], 2),
    ],
)
def test_refusals(words: list[str], code: int, call: Call) -> None:  # noqa: F811
    done = call("bench", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("kvcli: error: ")


def test_all_too_long_is_an_error(config: Path, call: Call) -> None:  # noqa: F811
    done = call("bench", "--random-weights", config, "-p", "2K", "--policy", "full", "--dtype", "float32")
    assert (done.code, done.out) == (6, "")
