"""A calibration is the model's own, is found again, and gives way to nothing that does not fit."""

import dataclasses

import pytest
import torch

from kvcli.engine.prefill import prefill
from kvcli.errors import DamagedError, ModelError
from kvcli.models.model import Model
from kvcli.planning.disk import disk_bytes
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.prefill import cached_prefill
from kvcli.prompt_cache.request import PrefillRequest, request_key
from kvcli.recipe import parse
from kvcli.retaining_heads import calibration, checkpoint
from kvcli.storage.infinigen import QUERIES, PartialKeys
from tests import tiny
from tests.laws.helpers import drain, filled

FILE = "full+infinigen(skew=file, dense=1, least=0)"


@pytest.fixture
def model(tmp_path, monkeypatch) -> Model:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    return tiny.load("llama")


def make(model: Model, /, length: int = 60, seed: int = 5, **card: object) -> dict[int, torch.Tensor]:
    """A calibration where it is found; ``card`` says otherwise than is true."""
    moments = drain(calibration.measure(model, tiny.document(length, seed=seed), chunk=16))
    spec = model.spec
    about = calibration.CalibrationCard(
        model.name,
        checkpoint.identity(model),
        spec.layers,
        spec.heads,
        spec.head_dim,
        length,
        [{"name": "a.txt"}],
        "today",
    )
    calibration.save(calibration.path(model), moments, dataclasses.replace(about, **card))
    return moments


def turns(model: Model, recipe: str) -> list[torch.Tensor]:
    context = drain(prefill(model, tiny.document(50), parse(recipe), chunk=16))
    indices = [layer.index for layer in context.layers if layer.host_nbytes]
    assert all(isinstance(index, PartialKeys) for index in indices)
    return [index.rotation for index in indices]


def test_it_is_the_second_moment_of_that_text(model) -> None:
    moments = make(model)
    work = filled(model, tiny.document(60, seed=5), "full+infinigen(skew=text, dense=0)", 60)
    assert set(moments) == {0, 1, 2}
    for layer in work.layers:
        assert torch.allclose(moments[layer.index], layer.state[QUERIES] / 60, rtol=1e-3, atol=1e-4)


def test_a_file_turns_and_without_one_nothing_does(model) -> None:
    none, text = (turns(model, f"full+infinigen(skew={how}, dense=1, least=0)") for how in ("none", "text"))
    auto = "full+infinigen(dense=1, least=0)"
    said = calibration.attach(model, [parse(auto)])
    assert said is not None
    assert "kvcli calibrate" in said
    assert all(torch.equal(a, b) for a, b in zip(none, turns(model, auto), strict=True))
    assert all(((a == 0) | (a == 1)).all() and bool((a.sum(1) == 1).all()) for a in none)
    assert not any(torch.equal(a, b) for a, b in zip(none, text, strict=True))
    make(model)
    assert "a.txt" in (calibration.attach(model, [parse(auto)]) or "")
    from_file = turns(model, FILE)
    assert all(torch.equal(a, b) for a, b in zip(from_file, turns(model, auto), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(from_file, text, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(text, turns(model, "full+infinigen(skew=text, dense=1, least=0)"), strict=True)
    )


def test_the_same_model_under_another_name_finds_it(model) -> None:
    make(model)
    calibration.path(model).rename(calibration.path(model).with_name("elsewhere.skew"))
    assert "a.txt" in (calibration.attach(model, [parse(FILE)]) or "")


def test_who_does_not_ask_is_told_nothing(model) -> None:
    make(model, identity="of another")
    assert calibration.attach(model, [parse("full"), parse("full+quest"), parse("full+infinigen(skew=none)")]) is None


def test_skew_file_without_one_is_refused(model) -> None:
    with pytest.raises(ModelError, match="none exists for llama"):
        calibration.attach(model, [parse(FILE)])
    with pytest.raises(ModelError, match="needs a calibration"):
        filled(model, tiny.document(50), FILE, 16)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"layers": 7}, "7 layers where the model has 3"),
        ({"identity": "0123", "model": "other"}, "made for other"),
    ],
)
@pytest.mark.parametrize("skew", ["file", "auto"])
def test_another_models_is_refused_and_says_what_differs(model, wrong: dict[str, object], says: str, skew: str) -> None:
    make(model, **wrong)
    with pytest.raises(ModelError, match=says) as caught:
        calibration.attach(model, [parse(f"full+infinigen(skew={skew})")])
    assert "kvcli calibrate -m llama" in (caught.value.hint or "")


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_one_is_refused(model, damage: bytes | None) -> None:
    make(model, heads=9) if damage is None else None
    where = calibration.path(model)
    if damage is not None:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(damage)
    with pytest.raises(DamagedError):
        calibration.attach(model, [parse(FILE)])


@pytest.mark.parametrize("hold", ["quest(page=4, pages=3)", "shadowkv(rank=6, chunk=2, chunks=3)", FILE[5:], "int8"])
def test_a_reading_of_full_serves_holds_that_gather_nothing(model, tmp_path, hold: str) -> None:
    make(model)
    calibration.attach(model, [parse(FILE)])
    library, ids = CacheDirectory(tmp_path / "readings"), tiny.document(60)
    library.folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        PrefillRequest(ids=ids, recipe=parse(r), chunk=16, horizon=160, text="t", document={})
        for r in ("full", f"full+{hold}")
    ]
    places = [library.path(request_key(model, job)) for job in jobs]
    found = [
        drain(cached_prefill(model, job, place=p, library=library)).cache for job, p in zip(jobs, places, strict=True)
    ]
    assert found == ["miss", "hit"]
    observing = PrefillRequest(ids=ids, recipe=parse("full+infinigen(skew=text)"), chunk=16, horizon=160)
    assert request_key(model, observing) != request_key(model, jobs[0])


@pytest.mark.parametrize("recipe", ["full", "full+infinigen(dense=1)", FILE, "full+infllm(block=4)"])
def test_a_saved_reading_is_as_large_as_was_planned(model, tmp_path, recipe: str) -> None:
    """What a hold has gathered is in it, at its end and at its edge."""
    make(model)
    calibration.attach(model, [parse(FILE)])
    job = PrefillRequest(ids=tiny.document(300), recipe=parse(recipe), chunk=32, horizon=320, text="t", document={})
    drain(cached_prefill(model, job, place=tmp_path / "a.kv"))
    size = (tmp_path / "a.kv").stat().st_size
    planned = disk_bytes(model.spec, job.recipe, tokens=300, chunk=32, text=1)
    assert size <= planned <= size + 20_000
