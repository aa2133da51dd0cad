"""A model that is larger than the GPU: where its parts go, that this is said, and that it computes the same.

There is no GPU here: the CPU stands for it, and the disk for main memory.
"""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvcli.cache.decode_cache import DecodeCache
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.errors import ResourceError
from kvcli.eviction.keydiff import Keydiff
from kvcli.models import attention, device_map, load
from kvcli.models.device_map import over
from kvcli.models.weights import ModelSource
from kvcli.planning import memory
from kvcli.recipe import parse
from tests import tiny
from tests.e2e.conftest import call, environment, folder, tiny_model  # noqa: F401
from tests.laws.helpers import asked


def outline(family: str = "llama"):
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(tiny.FAMILIES[family](), dtype=torch.bfloat16)
    module.tie_weights()
    return module, sum(p.nbytes for p in module.parameters())


@pytest.mark.parametrize("share", [0.75, 0.85, 0.95])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3-longrope"])
def test_no_more_goes_to_the_gpu_than_it_has_room_for(family: str, share: float) -> None:
    module, whole = outline(family)
    found = over(module, {"cuda:0": int(share * whole)}, 2**30, "m")
    (gpu,) = found.gpus.values()
    assert 0 < gpu <= share * whole
    assert gpu + found.host == whole
    assert set(found.places.values()) == {"cuda:0", "cpu"}
    assert all(where == "cuda:0" for part, where in found.places.items() if part.endswith(("rotary_emb", "model.norm")))
    layers = [found.places.get(f"model.layers.{i}", found.places.get("model.layers")) for i in range(3)]
    assert layers == sorted(layers, reverse=True)  # the first ones are on the GPU
    assert f"{layers.count('cuda:0')} of 3 layers" in found.text


@pytest.mark.parametrize("shares", [(0.75, 0.5), (0.75, 0.75, 0.75), (0.75, 0.3)])
def test_layers_are_spread_over_the_gpus_in_order(shares: tuple[float, ...]) -> None:
    module, whole = outline()
    rooms = {f"cuda:{i}": int(share * whole) for i, share in enumerate(shares)}
    found = over(module, rooms, 2**30, "m")
    assert list(found.gpus) == list(rooms)
    assert all(held <= rooms[gpu] for gpu, held in found.gpus.items())
    assert sum(found.gpus.values()) + found.host == whole
    order = [*rooms, "cpu"]
    layers = [order.index(found.places.get(f"model.layers.{i}", "cpu")) for i in range(3)]
    assert layers == sorted(layers)
    assert len(set(layers)) > 1
    assert ("offloaded to RAM" in found.text) is bool(found.host)
    assert all(f"on {gpu}" in found.text for gpu in {order[i] for i in layers} - {"cpu"})


def test_keys_and_values_are_where_their_layer_is() -> None:
    """A device without memory stands for the second GPU."""
    model = load.wrap(tiny.build("llama"), None, name="m", fingerprint=None)
    assert model.spec.devices == ()
    spread = replace(model.spec, devices=("cpu", "cpu", "meta"))
    where = {"dtype": model.dtype, "device": model.device}
    prefill = PrefillCache(spread, Keydiff(budget=24), model.rotary, tokens=60, chunk=20, **where)
    decode = DecodeCache(spread, model.rotary, None, **where)
    for layers in (prefill.layers, decode.layers):
        assert [layer.k.device.type for layer in layers] == ["cpu", "cpu", "meta"]
    assert {on.type for on in prefill.workspace.tensors} == {"cpu", "meta"}


def test_each_gpu_needs_room_for_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load.wrap(tiny.build("llama"), None, name="m", fingerprint=None).spec
    plan, _ = memory.plan_run(spec, parse("keydiff(budget=24)"), tokens=900, chunk=64, question=8, answer=500)
    spread = replace(spec, device="cuda:0", devices=("cuda:0", "cuda:0", "cuda:1"))
    plan = replace(plan, weights=0)
    free = {"cuda:0": plan.total, "cuda:1": plan.total - (plan.prefill + plan.answer) // 2}
    monkeypatch.setattr(memory, "free_on", free.__getitem__)
    plan.check_devices(spread)
    free["cuda:1"] = plan.workspace
    with pytest.raises(ResourceError, match="cuda:1"):
        plan.check_devices(spread)


@pytest.mark.parametrize(("share", "host", "hint"), [(0.1, 2**30, "--device cpu"), (0.8, 10, "--weights nf4")])
def test_what_fits_nowhere_is_refused_with_a_way_out(share: float, host: int, hint: str) -> None:
    module, whole = outline()
    with pytest.raises(ResourceError, match="takes") as error:
        over(module, {"cuda:0": int(share * whole)}, host, "m")
    assert error.value.hint == hint


class Reached(Exception):
    """Loading began."""


@pytest.mark.parametrize("free", [0.95, 1.5])
def test_it_is_said_before_anything_is_loaded(tmp_path, monkeypatch, free: float) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    whole, said, given = outline()[1], [], {}

    def begin(*_args: object, **options: object) -> None:
        given.update(options, said=list(said))
        raise Reached

    monkeypatch.setattr(load.AutoTokenizer, "from_pretrained", lambda *_a, **_k: str)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", begin)
    monkeypatch.setattr(load, "placed", lambda *_: ("cuda:0", "bfloat16"))
    monkeypatch.setattr(device_map, "available", lambda _: int(free * whole))
    monkeypatch.setattr(device_map, "KEPT_BACK", 0.1)
    with pytest.raises(Reached):
        load.load(ModelSource("tiny", tmp_path, "directory"), announce=said.append)
    if free > 1:
        assert not said
        assert given["device_map"] == {"": "cuda:0"}
    else:
        assert len(given["said"]) == 1
        assert "offloaded to RAM" in said[0]
        assert "\n" not in said[0]
        assert set(given["device_map"].values()) == {"cuda:0", "cpu"}


def test_without_anyone_to_tell_it_is_a_warning() -> None:
    import inspect
    import warnings

    assert inspect.signature(load.load).parameters["announce"].default is warnings.warn


@pytest.mark.parametrize("family", ["llama", "phi3-longrope"])
def test_fetched_layers_compute_the_same_on_the_device(tmp_path, monkeypatch, family: str) -> None:
    plain = tiny.build(family)
    plain.save_pretrained(tmp_path / "model")
    module, _ = outline(family)
    places = {name: "cpu" for name, _ in module.named_children() if name != "model"}
    places |= {f"model.{name}": "cpu" for name, _ in module.model.named_children() if name != "layers"}
    places |= {f"model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
    attention.register()
    apart = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, device_map=places, offload_folder=str(tmp_path / "rest")
    )
    seen = []
    inner = attention.attend

    def watched(module, query, *args, **options):
        seen.append((module.layer_idx, query.device.type))
        return inner(module, query, *args, **options)

    monkeypatch.setattr(attention, "attend", watched)
    model = load.wrap(apart, None, name="spread", fingerprint=None)
    assert model.spec.device == "cpu"
    assert 0 < model.spec.host_weight_bytes < model.spec.weight_bytes
    body, question = tiny.document(60), tiny.document(7, seed=2)
    expected = asked(load.wrap(plain, None, name="plain", fingerprint=None), body, question, "keydiff(budget=24)", 16)
    seen.clear()
    assert torch.equal(asked(model, body, question, "keydiff(budget=24)", 16), expected)
    assert set(seen) == {(layer, "cpu") for layer in range(3)}
    assert next(apart.model.layers[2].parameters()).device.type == "meta"


def test_ask_says_it_and_answers_the_same(tiny_model, call, folder, monkeypatch) -> None:  # noqa: F811
    """The whole command: the CPU is told to be a GPU that is too small, and the disk to be main memory."""
    (folder / "a.txt").write_text("The dog is called Pepper. " * 20)
    words = ["ask", "a.txt", "Who?", "-m", tiny_model, "--dtype", "float32", "-n", "6", "--no-cache", "--json"]
    plain = call(*words)
    assert "offloaded to RAM" not in plain.err

    def needed(config: object, dtype: torch.dtype, _device: str, name: str) -> device_map.DeviceMap:
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config, dtype=dtype)
        whole = sum(p.nbytes for p in module.parameters())
        return over(module, {"cpu": int(0.85 * whole)}, 2**30, name, rest="disk")

    def from_pretrained(path: object, **options: object) -> object:
        return load_from(path, **options, offload_folder=str(folder / "rest"))

    load_from = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(load, "placed", lambda _device, dtype: ("cuda:0", dtype))
    monkeypatch.setattr(device_map, "needed", needed)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    apart = call(*words)
    assert apart.code == 0, apart.err
    (line,) = [line for line in apart.err.splitlines() if "offloaded to RAM" in line]
    assert line.startswith("weights ")
    assert "1 of 2 layers" in line
    assert apart.json["answer"] == plain.json["answer"]
    assert 0 < apart.json["model"]["host_weight_bytes"] < apart.json["model"]["weight_bytes"]
