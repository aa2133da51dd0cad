"""Multi-head latent attention: a token is kept as its latent and one rotated key, and nothing else changes."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import small_models
from kvcli.cache.context import freeze
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, prefill
from kvcli.errors import ModelError
from kvcli.models import spec as model_spec
from kvcli.models.load import load as read
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.random_weights import build
from kvcli.models.weights import ModelSource
from kvcli.planning.memory import plan
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.recipe import parse
from kvcli_kernels.attention import LatentScale, causal_attention
from tests import tiny
from tests.e2e.conftest import byte_tokenizer
from tests.laws.helpers import answer, asked, distance, drain, filled, reference
from tests.laws.test_prompt_cache import interrupted, run, same

KINDS = ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"]
EXACT = 2e-5


@cache
def load(kind: str) -> Model:
    return wrap(small_models.build(kind), None, name=kind, fingerprint=None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_its_latent_and_one_key(kind: str) -> None:
    spec = load(kind).spec
    assert spec.latent
    assert (spec.kv_heads, spec.head_dim) == (1, 32 + 8)
    assert spec.row_bytes == 4 * (32 + 8) * spec.layers
    assert filled(load(kind), tiny.document(50), "full", 16).layers[0].k.shape[0] == 1


@pytest.mark.parametrize(
    "recipe", ["snapkv(budget=90)", "full+quest(page=4, pages=99)", "h2o(budget=90)", "full+int8", "full+minference"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_whole_gives_the_logits_of_one_full_forward_pass(kind: str, recipe: str) -> None:
    ids, question = tiny.document(90), tiny.document(9, seed=1)
    limit = 5e-2 if "int8" in recipe else EXACT
    got = asked(load(kind), ids, question, recipe, 37)
    assert distance(got, reference(load(kind), ids + question)[-9:]) < limit


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("pieces", [(1, 40, 24, 16, 24, 8), (4, 96, 32, 16, 16, 8), (3, 70, 40, 24, 32, 8)])
def test_unpacking_each_head_changes_no_output(pieces: tuple[int, ...], window: int | None) -> None:
    """Many queries unpack; few attend to the latents, and so does anything that is not a forward pass's own queries."""
    heads, rank, plain, width, rotated, many = *pieces[:5], 200
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    q, matrix, keys = draw(heads, many, plain + rotated), draw(heads, plain + width, rank), draw(1, 300, rank + rotated)
    turned = torch.cat([q[..., :plain] @ matrix[:, :plain], q[..., plain:]], dim=-1)
    scale = LatentScale(0.02, q[..., :plain], matrix)
    average = causal_attention(turned, keys, keys, 0.02, window)[..., :rank]
    expected = average @ matrix[:, plain:].transpose(1, 2)
    torch.testing.assert_close(causal_attention(turned, keys, keys, scale, window), expected, rtol=1e-4, atol=1e-4)
    few = LatentScale(0.02, q[:, :1, :plain], matrix)
    for one in (few, scale):
        out = causal_attention(turned[:, -1:], keys, keys, one, window)
        torch.testing.assert_close(out[..., :rank], average[:, -1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "storage", ["", "+int8", "+kivi(group=8)", "+turbo(bits=8)", "+turbo(bits=8, fill=true)", "+quest(page=4)"]
)
def test_what_is_taken_is_what_was_planned(storage: str) -> None:
    model, recipe = load("glm4_moe_lite"), parse(f"keydiff(budget=64){storage}")
    work = filled(model, tiny.document(130), str(recipe), chunk=57)
    planned = plan(model.spec, recipe, tokens=130, chunk=57, tail=30)
    assert work.nbytes - work.workspace.nbytes <= planned.prefill
    context = freeze(work, recipe.storage)
    taken = context.nbytes + context.host_nbytes
    assert taken == planned.context or ("quest" in storage and taken < planned.context)  # so few units stay dense
    cache = new_decode_cache(model, context)
    answer(model, cache, tiny.document(9), 21)
    assert cache.nbytes == planned.answer == 30 * model.spec.row_bytes
    twice = plan(model.spec, parse(f"keydiff(budget=128){storage}"), tokens=130, chunk=57, tail=30).context
    assert planned.context < twice


@pytest.mark.parametrize("term", ["", "+turbo(bits=8, fill=true)"])
def test_saved_stopped_rewound_and_extended(term: str, tmp_path: Path) -> None:
    model, recipe, ids = load("deepseek_v3"), f"keydiff(budget=24, stabilizers=8, tail=9){term}", tiny.document(90)
    request = PrefillRequest(ids, parse(recipe), chunk=16, horizon=160, text="text")
    whole, _ = run(model, request, place=tmp_path / "whole.kv")
    interrupted(model, request, 40, place=tmp_path / "part.kv")
    resumed, _ = run(model, request, place=tmp_path / "part.kv")
    assert resumed.cache == "resumed"
    same(model, whole, resumed)
    same(model, whole, run(model, request, place=tmp_path / "whole.kv")[0])
    longer = PrefillRequest(tiny.document(120), parse(recipe), chunk=16, horizon=160, text="text")
    same(model, run(model, longer, base=tmp_path / "whole.kv")[0], run(model, longer)[0])
    cache = new_decode_cache(model, whole.context)
    first = answer(model, cache, tiny.document(9))
    cache.rewind()
    assert answer(model, cache, tiny.document(9)) == first


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path = tmp_path_factory.mktemp("models") / "glm"
    small_models.build("glm4_moe_lite").to(torch.bfloat16).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return ModelSource("glm", path, "directory")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_quantized_weights_keep_latents(source: ModelSource, held: str, dtype: str) -> None:
    model = read(source, device="cpu", dtype=dtype, weights=held)
    sizes = model_spec.spec(source, device="cpu", dtype=dtype, stored=held)
    assert model.spec.weight_bytes == pytest.approx(sizes.weight_bytes, rel=1e-3)  # experts' biases stay float32
    assert replace(model.spec, weight_bytes=sizes.weight_bytes) == sizes
    assert sizes.latent
    assert sizes.row_bytes == model_spec.spec(source, device="cpu", dtype=dtype).row_bytes
    drawn = build(source.path, device="cpu", dtype=dtype, weights=held).spec
    assert drawn.latent
    assert drawn.weight_bytes == pytest.approx(sizes.weight_bytes, rel=1e-3)
    ids = tiny.document(60)
    limit = EXACT if (held, dtype) == ("nf4", "float32") else 0.3  # int8 rounds what is multiplied by it
    assert distance(asked(model, ids[:50], ids[50:], "full", 16), reference(model, ids)[50:]) < limit


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_a_saved_quantized_checkpoint_keeps_latents_too(held: str, tmp_path: Path) -> None:
    small_models.build("minicpm3").to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    byte_tokenizer().save_pretrained(tmp_path / "whole")
    whole = ModelSource("whole", tmp_path / "whole", "directory")
    read(whole, device="cpu", dtype="bfloat16", weights=held).module.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    again = ModelSource("again", tmp_path, "directory")
    planned, taken = model_spec.spec(again, device="cpu", dtype="bfloat16"), read(again, device="cpu", dtype="bfloat16")
    assert planned.latent
    assert (planned.row_bytes, planned.shapes) == (taken.spec.row_bytes, taken.spec.shapes)


def test_turns_are_absorbed_as_one_longer_document() -> None:
    model, body, turns, question = load("glm4_moe_lite"), tiny.document(80), tiny.document(30, seed=3), [5, 6, 7]
    work = filled(model, body, "full", 30)
    answer(model, new_decode_cache(model, freeze_and_keep(work, parse("full"))), turns, count=2)
    cache = new_decode_cache(model, drain(evict_turns(model, work, turns, parse("full"), chunk=13)))
    logits = model.forward(torch.tensor(question), cache, logits="all")
    assert logits is not None
    assert distance(logits, reference(model, body + turns + question)[-3:]) < EXACT


@pytest.mark.parametrize("recipe", ["keydiff(budget=24, victims=merge)", "elastic(budget=24)", "full+minicache"])
def test_terms_that_change_keys_and_values_apart_are_refused(recipe: str) -> None:
    model = load("deepseek_v3")
    with pytest.raises(ModelError, match="keeps both as one latent"):
        drain(prefill(model, tiny.document(50), parse(recipe).for_model(model.spec), chunk=20))


def test_a_matrix_with_a_bias_is_unpacked_as_the_model_does() -> None:
    module = small_models.build("deepseek_v3")
    for name, part in list(module.named_modules()):
        if name.endswith("kv_b_proj"):
            part.bias = torch.nn.Parameter(torch.randn(part.out_features))
    model = wrap(module, None, name="biased", fingerprint=None)
    assert not model.spec.latent
    assert model.spec.kv_heads == model.spec.heads
    ids = tiny.document(60)
    assert distance(asked(model, ids[:50], ids[50:], "full", 16), reference(model, ids)[50:]) < EXACT
