"""Pictures in the library: read, asked, chatted about, and refused by a model without its vision tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvcli
from kvcli.chat.setup import open_chat
from kvcli.errors import ModelError
from tests import pictures


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save(tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return kvcli.load_model(str(directory), find_heads=False, pictures=True)


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    (tmp_path / "chart.png").write_bytes(pictures.png(40, 30))
    return tmp_path / "chart.png"


@pytest.mark.parametrize("words", [True, False], ids=["beside a text", "alone"])
def test_a_document_with_a_picture_is_asked(model: Any, chart: Path, tmp_path: Path, words: bool) -> None:
    (tmp_path / "book.txt").write_text("The chart shows that three houses are blue. " * 20)
    document = kvcli.read_document(*[tmp_path / "book.txt"] * words, images=[chart])
    pipeline = kvcli.Pipeline(model, "keydiff(budget=64)", cache=kvcli.CacheDirectory(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    context = pipeline.prefill(document)
    assert context.context is not None
    assert context.context.kept == 64 < context.tokens
    first = pipeline.answer(context, "What is it?", max_tokens=6)
    again = pipeline.prefill(document)
    assert again.cache == "hit"
    assert pipeline.answer(again, "What is it?", max_tokens=6).text == first.text


def test_a_chat_about_a_picture(model: Any, chart: Path) -> None:
    chat = open_chat(kvcli.Pipeline(model, "keydiff(budget=256)"), kvcli.read_document(images=[chart]), max_tokens=8)
    for text in ("What is it?", "And why?"):
        assert list(chat.ask(text, max_tokens=4))


def test_a_model_without_its_tower_says_so(directory: Path, chart: Path) -> None:
    blind = kvcli.load_model(str(directory), find_heads=False)
    with pytest.raises(ModelError, match="without a vision tower") as error:
        kvcli.Pipeline(blind, "full").prefill(kvcli.read_document(images=[chart]))
    assert "pictures=True" in str(error.value.hint)
