"""Pictures in a text: chunked prefill equals transformers' own forward pass, wherever a chunk begins or ends."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from kvcli.documents.pictures import decode
from kvcli.engine.prefill import new_prefill_cache, prefill_steps
from kvcli.errors import ModelError
from kvcli.models.model import Model
from kvcli.models.pictures import Pictures
from kvcli.recipe import parse
from tests import pictures, tiny
from tests.laws.helpers import asked, distance, drain


def words(length: int, seed: int = 0) -> list[int]:
    return [min(token, pictures.IMAGE - 1) for token in tiny.document(length, seed=seed)]


QUESTION = words(6, seed=1)


@cache
def model(family: str) -> Model:
    return pictures.load(family)


def encode(text: str) -> list[int]:
    return [3 + byte % 90 for byte in text.encode()[-3:]]


def text(family: str) -> tuple[list[int], Pictures]:
    """Words, a picture of several tiles, words, a small picture, words."""
    reader = model(family).pictures
    assert reader is not None
    seen = reader.read([pictures.picture(40, 30, 1), pictures.picture(9, 14, 2)], encode)
    return [*words(7), *seen.ids, *words(11, seed=2)], seen


@torch.inference_mode()
def reference(family: str, ids: list[int], seen: Pictures) -> torch.Tensor:
    """Logits of one forward pass of transformers' model, with all pictures at once."""
    files: Any = [decode(file) for file in seen.files]
    reader = model(family).pictures
    assert reader is not None
    pixels = reader.processor(files if family == "llava" else [files], return_tensors="pt")
    given = {name: pixels[name] for name in ("pixel_values", "pixel_attention_mask") if name in pixels}
    with model(family).reference() as module:
        found: torch.Tensor = module(input_ids=torch.tensor([ids]), use_cache=False, **given).logits[0]
    return found


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 16, 500])
@pytest.mark.parametrize("family", pictures.FAMILIES)
def test_any_chunk_size(family: str, chunk: int) -> None:
    body, seen = text(family)
    got = asked(model(family), body, QUESTION, f"keydiff(budget={len(body)})", chunk, seen)
    assert distance(got, reference(family, body + QUESTION, seen)[-6:]) < 1e-5


@pytest.mark.parametrize(
    "recipe",
    [
        "full",
        "h2o(budget=600)",
        "snapkv(budget=600)",
        "sirllm(budget=600)",
        "elastic(budget=600)",
        "vlcache(budget=600)",
    ],
)
def test_no_policy_disturbs_pictures(recipe: str) -> None:
    body, seen = text("smolvlm")
    got = asked(model("smolvlm"), body, QUESTION, recipe, 16, seen)
    assert distance(got, reference("smolvlm", body + QUESTION, seen)[-6:]) < 1e-5


@pytest.mark.parametrize("family", pictures.FAMILIES)
def test_the_picture_matters(family: str) -> None:
    """Another picture of the same size has the same tokens and other logits: the law above is not about text alone."""
    body, seen = text(family)
    reader = model(family).pictures
    assert reader is not None
    other = reader.read([pictures.picture(40, 30, 3), pictures.picture(9, 14, 2)], encode)
    assert (other.ids, other.rows) == (seen.ids, seen.rows)
    assert other.digest != seen.digest
    got = [asked(model(family), body, QUESTION, "full", 16, each) for each in (seen, other)]
    assert distance(got[0], got[1]) > 1e-3


def test_positions_of_pictures_are_ordinary_units() -> None:
    body, seen = text("smolvlm")
    work = drain(prefill_steps(model("smolvlm"), body, parse("keydiff(budget=24, sinks=2)"), chunk=8, pictures=seen))
    assert all(layer.count == 24 for layer in work.layers)
    images = {i for i, token in enumerate(body) if token == pictures.IMAGE}
    kept = {int(p) for layer in work.layers for p in layer.pos[:, :24].flatten()}
    assert kept & images
    assert images - kept


@pytest.mark.parametrize("stop", [2, 5])
def test_an_interrupted_prefill_equals_an_uninterrupted_one(stop: int) -> None:
    """Also if it stops inside a picture; pictures that were read are not read again."""
    body, seen = text("smolvlm")
    recipe = parse("keydiff(budget=24)")
    whole = drain(prefill_steps(model("smolvlm"), body, recipe, chunk=8, pictures=seen))
    work = new_prefill_cache(model("smolvlm"), recipe, len(body), chunk=8)
    begun = prefill_steps(model("smolvlm"), body, recipe, chunk=8, pictures=seen, resume=work)
    for _ in range(stop):
        next(begun)
    half = work.copy()
    rest = drain(prefill_steps(model("smolvlm"), body, recipe, chunk=8, pictures=seen, resume=half))
    for a, b in zip(whole.layers, rest.layers, strict=True):
        assert torch.equal(a.k[:, : a.count], b.k[:, : b.count])
        assert torch.equal(a.pos[:, : a.count], b.pos[:, : b.count])


def test_image_tokens_without_a_picture_are_refused() -> None:
    body, seen = text("smolvlm")
    with pytest.raises(ModelError, match="image tokens"):
        drain(prefill_steps(model("smolvlm"), [*body, pictures.IMAGE], parse("full"), chunk=8, pictures=seen))


@pytest.mark.parametrize("size", [(16, 16), (17, 3), (3, 17), (64, 20), (20, 64), (1, 1), (2, 3), (1, 200)])
@pytest.mark.parametrize("family", pictures.FAMILIES)
def test_tokens_are_known_before_the_pixels(family: str, size: tuple[int, int]) -> None:
    """The plan counts what the tower will make, whatever a picture's shape."""
    reader = model(family).pictures
    assert reader is not None
    seen = reader.read([pictures.picture(*size)], encode)
    got = asked(model(family), [*words(3), *seen.ids], QUESTION, "full", 500, seen)
    assert torch.isfinite(got).all()
    assert seen.ids.count(pictures.IMAGE) == sum(seen.rows) > 0


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("size", [(40, 30), (9, 14)])
def test_tokens_are_those_of_transformers(family: str, size: tuple[int, int]) -> None:
    """Against the processor's own text for a picture, whose class needs other packages to be made."""
    from types import SimpleNamespace

    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    reader = model(family).pictures
    assert reader is not None
    pixels = reader.processor([[decode(pictures.png(*size))]], return_row_col_info=True)
    stub: Any = SimpleNamespace(
        fake_image_token="<fake_token_around_image>", image_token="§", global_image_tag="<global-img>", image_seq_len=4
    )
    expected = Idefics3Processor.replace_image_token(stub, pixels, 0)
    ids = [pictures.IMAGE if c == "§" else ord(c) for c in expected]
    assert reader.ids(lambda words: [ord(c) for c in words], *size) == ids
