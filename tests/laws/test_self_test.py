"""The probe passes what is understood and refuses, with a report, what is not."""

import pytest
import torch

from kvcli.errors import UnsupportedModel
from kvcli.models import self_test
from kvcli.models.load import wrap
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families_pass(model, family: str) -> None:
    assert self_test.compare(model(family)).logits < 1e-5


def test_what_kvcli_does_not_understand_is_refused_with_a_report() -> None:
    module = tiny.build("llama")
    layer = module.get_submodule("model.layers.0.self_attn")
    layer.register_forward_pre_hook(lambda _m, args, kwargs: (args, {**kwargs, "tilt": 50.0}), with_kwargs=True)
    with pytest.raises(UnsupportedModel) as error:
        wrap(module, None, name="llama", fingerprint=None)
    for part in ("LlamaAttention", "layer 0", "tilt=50.0", "(1, 4,"):
        assert part in error.value.message


@pytest.mark.parametrize(
    ("family", "break_it"),
    [
        ("llama", lambda m: setattr(m.rotary, "rotated", [True, False, True])),
        ("smollm3", lambda m: setattr(m.rotary, "rotated", [True, True, True])),
        ("gemma3", lambda m: setattr(m.rotary, "types", ["full_attention"] * 3)),
        ("llama", lambda m: setattr(m.rotary, "apply", lambda x, *_: x)),
    ],
)
def test_a_mistake_in_rotation_is_caught(family: str, break_it) -> None:
    """What the probe is for: each of these is a mistake that kvcli could make."""
    model = tiny.load(family)
    break_it(model)
    assert self_test.compare(model).logits > 100 * self_test.TOLERANCE["float32"]


def test_frequencies_of_a_wrong_length_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.load("phi3-longrope")
    monkeypatch.setattr(model.rotary, "fix_length", lambda _: None)
    model.rotary.horizon = 400
    model.rotary._tables.clear()
    assert self_test.compare(model).logits > 100 * self_test.TOLERANCE["float32"]


def test_whatever_a_model_raises_is_a_report_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny.build("llama")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(module.model.layers[1].mlp, "forward", fail)
    with pytest.raises(UnsupportedModel) as error:
        wrap(module, None, name="broken", fingerprint=None)
    for part in ("broken", "LlamaForCausalLM", "ZeroDivisionError: no such thing", "model.layers.1.mlp"):
        assert part in error.value.message


def test_the_verdict_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path))
    calls = []
    real = self_test.compare
    monkeypatch.setattr(self_test, "compare", lambda m, *rest: calls.append(1) or real(m, *rest))
    for _ in range(2):
        wrap(tiny.build("llama"), None, name="llama", fingerprint="abc")
    assert len(calls) == 1
    wrap(tiny.build("llama"), None, name="llama", fingerprint="other")
    assert len(calls) == 2


def test_the_reference_is_restored_after_use(model) -> None:
    from tests.laws.helpers import asked, distance, reference

    body, question = tiny.document(40), tiny.document(5, seed=1)
    first = asked(model(), body, question, "full", 16)
    with pytest.raises(RuntimeError), model().reference():
        raise RuntimeError
    assert torch.equal(first, asked(model(), body, question, "full", 16))
    assert distance(first, reference(model(), body + question)[-5:]) < 1e-5
