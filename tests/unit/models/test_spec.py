"""A model described without loading it is the model that is loaded: sizes, weights, tokens, heads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import families, small_models
from kvcli.models import defaults, heads_on_disk, load
from kvcli.models import spec as model_spec
from kvcli.models.weights import ModelSource
from kvcli.types import DTYPE_BYTES
from tests import tiny


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_sizes_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    module = tiny.build(family)
    module.save_pretrained(tmp_path)
    source = ModelSource(family, tmp_path, "directory")
    former = model_spec.former_fingerprint(source)
    loaded = load.wrap(module, None, name=family, fingerprint=source.fingerprint, former=former).spec
    assert model_spec.spec(source, device="cpu", dtype="float32") == loaded
    halves = model_spec.spec(source, device="cpu", dtype="bfloat16")
    assert halves == dataclasses.replace(loaded, dtype="bfloat16", weight_bytes=loaded.weight_bytes // 2)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, "bfloat16") for kind in (*(kind for kind, *_ in families.COMMON), "falcon_h1")), ("qwen3_5", "float32")],
)
def test_sizes_of_the_families_that_people_run(kind: str, dtype: str, tmp_path: Path, monkeypatch) -> None:
    """Heads that differ by layer, windows, recurrent states, a language model inside one for images."""
    monkeypatch.setattr(load.self_test, "check", lambda *_, **__: None)
    module = small_models.build(kind).to(getattr(torch, dtype))
    module.save_pretrained(tmp_path)
    loaded = load.wrap(module, None, name=kind, fingerprint=None).spec
    said = model_spec.spec(ModelSource(kind, tmp_path, "directory"), device="cpu", dtype=dtype)
    same = {"fingerprint": "", "former_fingerprint": "", "weight_bytes": 0}
    assert dataclasses.replace(said, **same) == dataclasses.replace(loaded, **same)
    config = json.loads((tmp_path / "config.json").read_text())
    assert model_spec.kv_numbers(config) == loaded.row_bytes // DTYPE_BYTES[dtype]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral-window"])
def test_without_weights_the_config_says_nearly_the_same(family: str, tmp_path: Path) -> None:
    tiny.build(family).save_pretrained(tmp_path)
    here = model_spec.spec(ModelSource(family, tmp_path, "directory"), device="cpu", dtype="float32")
    (tmp_path / "model.safetensors").unlink()
    away = model_spec.spec(ModelSource(family, tmp_path, "hub", complete=False), device="cpu", dtype="float32")
    assert away.weight_bytes == pytest.approx(here.weight_bytes, rel=0.03)


def test_a_config_without_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "hidden_size": 32}))
    with pytest.raises(model_spec.ModelError, match="its config has no num_hidden_layers"):
        model_spec.spec(ModelSource("x", tmp_path, "hub", complete=False), device="cpu")


def test_heads_are_found_by_what_is_on_disk(tmp_path: Path) -> None:
    from kvcli.retaining_heads import checkpoint

    folder = tmp_path / "heads"
    folder.mkdir()
    model = tiny.load("llama")
    model.module.save_pretrained(tmp_path)
    source = ModelSource("llama", tmp_path, "directory")
    spec = model_spec.spec(source, device="cpu")
    assert heads_on_disk.heads_identity(source, spec) == checkpoint.identity(model)
    assert not heads_on_disk.heads_bytes(source, spec, [folder])
    heads = model.heads
    assert heads is not None
    checkpoint.save(folder / "mine.safetensors", heads, checkpoint.HeadsCard(identity="another"))
    (folder / "broken.safetensors").write_bytes(b"\xff" * 9)
    assert not heads_on_disk.heads_bytes(source, spec, [folder])
    checkpoint.save(folder / "mine.safetensors", heads, checkpoint.HeadsCard(identity=checkpoint.identity(model)))
    loaded = sum(p.nbytes for p in heads.parameters())
    assert heads_on_disk.heads_bytes(source, spec, [folder]) * 4 == loaded * DTYPE_BYTES[spec.dtype]  # of float32


def test_the_cpu_gets_the_same_dtype() -> None:
    assert model_spec.default_dtype("cpu") == load.default_dtype("cpu")


def test_extensions_of_the_cpu_are_those_that_torch_finds() -> None:
    found = {"amx_tile": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
    assert {name: name in defaults.cpu_flags() for name in found} == found


def test_a_step_of_prefill_is_as_large_as_the_device_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    some = load.wrap(tiny.build("llama"), None, name="tiny", fingerprint=None).spec
    for flags, size in (((), 512), (("avx2", "amx_tile"), 1024)):
        monkeypatch.setattr(defaults, "cpu_flags", lambda flags=flags: frozenset(flags))
        for window, expected in ((512, [512, 512]), (4096, [size, 1024]), (1 << 17, [size, 2048])):
            specs = [dataclasses.replace(some, device=on, max_positions=window) for on in ("cpu", "cuda:0")]
            assert [defaults.default_chunk(spec) for spec in specs] == expected
