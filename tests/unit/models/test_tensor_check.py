"""A checkpoint has exactly the tensors of its model, or it is refused with their names."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvcli.errors import ModelError
from kvcli.models import resolve
from kvcli.models.load import load
from kvcli.models.weights import ModelSource

from .conftest import make_model, run

Tensors = dict[str, Tensor]
GATE = "model.layers.0.mlp.gate_proj.weight"


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def edited(folder: Path, edit: Callable[[Tensors], Tensors], **config: object) -> ModelSource:
    file = make_model(folder) / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    return run(resolve.resolve(str(folder)))[0]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without("lm_head.weight"), "1 tensor missing: lm_head.weight"),
        (without(GATE), f"1 tensor missing: {GATE}"),
        (lambda t: {"net." + k: v for k, v in t.items()}, "21 tensors missing: .* and 18 more; 21 tensors not in this"),
        (
            lambda t: {**t, "model.layers.2.mlp.gate_proj.weight": t[GATE].clone()},
            "not in this architecture: model",
        ),
        (lambda t: {**t, GATE: t[GATE][:3].clone()}, rf"of another shape: {GATE} \(3×32 instead of 64×32\)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, edit: Callable[[Tensors], Tensors], said: str) -> None:
    source = edited(tmp_path / "m", edit)
    with pytest.raises(ModelError, match="has not the weights that its config") as found:
        load(source, device="cpu", dtype="float32")
    assert re.search(said, found.value.message), found.value.message


def test_tied_tensors_and_old_tables_are_no_fault(tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> Tensors:
        table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        return {**without("lm_head.weight")(tensors), **table}

    model = load(edited(tmp_path / "m", edit, tie_word_embeddings=True), device="cpu", dtype="float32")
    assert model.module.lm_head.weight.data_ptr() == model.module.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(("cls", "said"), [("BertModel", "is a BertModel, which does not generate"), (None, "missing")])
def test_an_encoder_is_said_to_be_one(tmp_path: Path, cls: str | None, said: str) -> None:
    source = edited(tmp_path, without("lm_head.weight"), architectures=[cls] if cls else None)
    with pytest.raises(ModelError, match=said):
        load(source)
