"""RoPE scaling survives the conversion of a GGUF: logits equal those of the same model with the same scaling."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvcli.errors import ModelError
from kvcli.models import gguf_rope, resolve

from .conftest import run, write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def theirs(head: int, parameters: dict[str, Any]) -> list[float]:
    """The divisors of transformers' own frequencies."""
    config = LlamaConfig(head_dim=head, max_position_embeddings=131_072, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    plain = [parameters["rope_theta"] ** (-2 * i / head) for i in range(head // 2)]
    return [p / float(s) for p, s in zip(plain, scaled, strict=True)]


@pytest.mark.parametrize("head", [8, 32, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(("factor", "high", "original"), [(8.0, 4.0, 8192), (32.0, 4.0, 8192), (4.0, 3.0, 1000)])
def test_any_factors_come_back(head: int, theta: float, factor: float, high: float, original: int) -> None:
    given = {**LLAMA3, "rope_theta": theta, "factor": factor, "high_freq_factor": high}
    given["original_max_position_embeddings"] = original
    factors = theirs(head, given)
    found = gguf_rope.parameters({}, "llama", theta=theta, window=131_072, factors=factors)
    assert theirs(head, {**found}) == pytest.approx(factors, rel=1e-3)
    if head >= 64 and high == 4.0:
        assert found == given


def test_factors_of_no_formula_are_taken_as_they_are() -> None:
    factors = [1.0, 3.0, 2.0, 7.5]
    found = gguf_rope.parameters({}, "llama", theta=1e4, window=4096, factors=factors)
    assert (found["rope_type"], found["attention_factor"]) == ("longrope", 1.0)
    assert theirs(8, found) == pytest.approx(factors)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"scaling.type": "wavy", "scaling.factor": 2.0}, "wavy"),
        ({"scaling.type": "yarn", "scaling.factor": 2.0}, "original context length"),
        ({"scaling.type": "linear", "scaling.factor": math.nan}, "factor nan"),
        ({"scaling.type": "linear", "scaling.factor": -2.0}, "factor -2"),
    ],
)
def test_what_is_not_known_is_refused(metadata: dict[str, Any], said: str) -> None:
    named = {f"llama.rope.{key}": value for key, value in metadata.items()}
    with pytest.raises(ModelError, match=said):
        gguf_rope.parameters(named, "llama", theta=1e4, window=4096)


def test_none_and_one_are_no_scaling() -> None:
    none = {"scaling.type": "none", "scaling.factor": 4.0}
    one = {"scaling.type": "linear", "scaling.factor": 1.0}
    for metadata in ({}, none, one):
        named = {f"llama.rope.{key}": value for key, value in metadata.items()}
        found = gguf_rope.parameters(named, "llama", theta=1e4, window=4096, factors=[1.0, 1.0])
        assert found == {"rope_type": "default", "rope_theta": 1e4}


def linear(writer: Any) -> None:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn(writer: Any) -> None:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def factors(writer: Any) -> None:
    writer.add_tensor("rope_freqs.weight", np.array(theirs(32, LLAMA3), dtype=np.float32))


YARN = {"rope_type": "yarn", "rope_theta": 100_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (linear, {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 4.0}),
        (yarn, YARN),
        (factors, LLAMA3),
    ],
)
def test_logits_are_those_of_the_scaled_model(
    tmp_path: Path, add: Callable[[Any], None], expected: dict[str, Any]
) -> None:
    source, _ = run(resolve.resolve(str(write_gguf(tmp_path / "m.gguf", add=add))))
    config = LlamaConfig.from_pretrained(source.path)
    assert config.rope_parameters["rope_type"] == expected["rope_type"]
    ours = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    config.rope_parameters = expected
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(ours.state_dict())
    ids = torch.arange(3, 203)[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, model(ids).logits, atol=2e-3, rtol=2e-3)
        config.rope_parameters = {"rope_type": "default", "rope_theta": 100_000.0}
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        assert not torch.allclose(ours(ids).logits, model(ids).logits, atol=2e-3, rtol=2e-3)
