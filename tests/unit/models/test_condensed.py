"""Checkpoints of Layer-Condensed models: a Llama without some projections, whose config names each layer's owner."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvcli.errors import ModelError
from kvcli.models.load import load
from kvcli.models.resolve import resolve
from kvcli.models.spec import kv_numbers, spec
from kvcli.pipeline import Pipeline
from tests.e2e.conftest import save_tiny
from tests.laws.helpers import asked, distance, drain

IDS, QUESTION = list(range(5, 35)), list(range(40, 49))


def checkpoint(path: Path, layer_types: str, **changes: Any) -> Path:
    """A Llama of four layers as its authors save one: only owners have projections of keys and values."""
    place = save_tiny(path, layers=4)
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "lckv-llama", "architectures": ["LCKVLlamaForCausalLM"], "layer_types": layer_types}
    config |= {"sliding_window": 4096, "use_sequential": False, "auto_map": {"AutoConfig": "mine.Config"}, **changes}
    (place / "config.json").write_text(json.dumps(config))
    owners = set(layer_types.split("_"))
    tensors = {
        name: tensor
        for name, tensor in load_file(place / "model.safetensors").items()
        if not (found := re.search(r"layers\.(\d+)\.self_attn\.[kv]_proj", name)) or found[1] in owners
    }
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return place


def test_it_loads_without_remote_code_and_its_layers_share(tmp_path: Path) -> None:
    source = drain(resolve(str(checkpoint(tmp_path / "a", "0_2_2_3", forward_passes=4, backward_passes=1))))
    model, planned = load(source), spec(source)
    assert model.spec.owners == planned.owners == (0, 2, 2, 3)
    assert model.spec.passes == planned.passes == 5
    assert model.spec.weight_bytes == planned.weight_bytes
    assert model.spec.row_bytes == planned.row_bytes == 3 * replace(planned, owners=()).row_bytes // 4
    assert (kv_numbers(source.config) or 0) * torch.finfo(model.dtype).bits // 8 == planned.row_bytes
    pipeline = Pipeline(model, recipe="full", chunk_size=8)
    assert pipeline.answer(pipeline.prefill("The grass is green. " * 5), "What?", max_tokens=4).text
    few, many = (asked(model, IDS, QUESTION, "full", chunk) for chunk in (1, 5))
    assert distance(few, many) < (1e-4 if model.spec.dtype == "float32" else 0.1)


def test_layers_that_share_with_lower_ones_pass_once(tmp_path: Path) -> None:
    model = load(drain(resolve(str(checkpoint(tmp_path / "a", "0_1_1_1")))))
    assert model.spec.passes == 0
    assert asked(model, IDS, QUESTION, "knorm(budget=8)", 8).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": "0_2_2"}, "no share map of 4 layers"),
        ({"layer_types": "0_2_3_3"}, "no share map of 4 layers"),
        ({"layer_types": "0_x_2_3"}, "no share map of 4 layers"),
        ({"layer_types": "0_1s_2_3"}, "windows in layers that share keys"),
        ({"force_nodiag": True}, "force_nodiag"),
    ],
)
def test_what_is_not_run_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    place = save_tiny(tmp_path / "a", layers=4)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(
        json.dumps(config | {"model_type": "lckv-llama", "layer_types": "0_1_2_3", **changes})
    )
    source = drain(resolve(str(place)))
    for use in (spec, load):  # before loading, and to load it
        with pytest.raises(ModelError, match=message):
            use(source)


def test_a_missing_projection_of_an_owner_is_missed(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "a", "0_2_2_3")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"layer_types": "0_1_2_3"}))
    with pytest.raises(ModelError, match=r"2 tensors missing: model\.layers\.1\.self_attn"):
        load(drain(resolve(str(place))))
