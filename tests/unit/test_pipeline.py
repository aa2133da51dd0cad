"""The library object: what its documentation shows runs, and threads that share a model do not disturb each other."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kvcli
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.errors import InputError, UsageError
from kvcli.events import Answer, CacheHit, Checkpoint, Prefill, Reread, Token, drain
from kvcli.prompt_cache import key
from kvcli.prompt_cache.prefill import PrefillInterrupted
from kvcli.recipe import parse
from tests.e2e.conftest import save_tiny

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"House {n} is blue and the sky above it is number {n}. " for n in range(60))
QUESTIONS = ("Which house is blue?", "What is above house 7?", "Who?")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return kvcli.load_model(str(directory), find_heads=False)


def test_the_documented_example_runs(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block of docs/library.md, one after the other, with a tiny model and without retaining heads."""
    (tmp_path / "book.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    code = "\n".join(blocks).replace('"smollm2-135m"', repr(str(directory))).replace("locret(", "keydiff(")
    exec(compile(code, "docs/library.md", "exec"), {})
    out = capsys.readouterr().out
    assert "Prefill(" in out
    assert re.search(r"^hit \d+$", out, re.MULTILINE)


def test_a_library_writes_nothing(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    kvcli.load_model(str(directory), find_heads=False)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() is shown


def test_the_readme_example_runs(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "README.md shows the library"
    (tmp_path / "book.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "cache"))
    code = "\n".join(blocks).replace('"smollm2-135m"', repr(str(directory))).replace("locret(", "keydiff(")
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=128)", "keydiff(budget=128)+kivi(bits=4)"])
def test_an_answer_is_that_of_the_engine(model: Any, recipe: str) -> None:
    """The pipeline adds nothing to prefill, question and generation."""
    pipeline, parsed = kvcli.Pipeline(model, recipe, chunk_size=64), parse(recipe)
    context = pipeline.prefill(TEXT)
    for text in QUESTIONS:
        question = pipeline.prompt.question(text)
        frozen = drain(prefill(model, pipeline.prompt.document(TEXT), parsed, chunk=64))
        *_, end = generate(model, new_decode_cache(model, frozen), question, max_tokens=8, chunk=64)
        assert isinstance(end, Answer)
        assert pipeline.answer(context, text, max_tokens=8, passages=0, cite=False).text == end.text


def test_threads_that_share_a_model_answer_as_one_thread(model: Any) -> None:
    """Four threads, two contexts of different recipes and lengths, prefill and answers at the same time."""
    pipelines = [
        kvcli.Pipeline(model, "keydiff(budget=128)", chunk_size=64),
        kvcli.Pipeline(model, "knorm(budget=96)+int8", chunk_size=48),
    ]
    texts = [TEXT, TEXT[: len(TEXT) // 2]]

    def run(pipeline: kvcli.Pipeline, context: Any, question: str) -> str:
        return pipeline.answer(context, question, max_tokens=12).text

    alone = [pipeline.prefill(text) for pipeline, text in zip(pipelines, texts, strict=True)]
    jobs = [(p, c, q) for q in QUESTIONS for p, c in zip(pipelines, alone, strict=True)]
    expected = [run(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: pair[0].prefill(pair[1]), zip(pipelines, texts, strict=True)))
        jobs = [(p, c, q) for q in QUESTIONS for p, c in zip(pipelines, together, strict=True)]
        assert list(pool.map(lambda job: run(*job), jobs)) == expected
        assert list(pool.map(lambda job: run(*job), jobs * 3)) == expected * 3


def test_a_saved_prefill_is_taken_up(model: Any, tmp_path: Path) -> None:
    pipeline = kvcli.Pipeline(model, "keydiff(budget=128)", cache=kvcli.CacheDirectory(tmp_path), chunk_size=64)
    events: list[Any] = []
    first = pipeline.prefill(TEXT, on_event=events.append)
    assert first.cache == "miss"
    assert any(isinstance(event, Prefill) for event in events)
    events.clear()
    second = pipeline.prefill(TEXT, on_event=events.append)
    assert (second.cache, second.reused) == ("hit", first.tokens)
    assert [type(event) for event in events] == [CacheHit]
    for question in QUESTIONS:
        assert (
            pipeline.answer(first, question, max_tokens=8).text == pipeline.answer(second, question, max_tokens=8).text
        )


@pytest.mark.parametrize("recipe", ["keydiff(budget=128)", "snapkv(budget=128)"])
def test_a_text_is_hashed_once_whatever_is_asked(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    lengths: list[int] = []
    pack = key.pack
    monkeypatch.setattr(key, "pack", lambda ids: lengths.append(len(ids)) or pack(ids))
    pipeline = kvcli.Pipeline(model, recipe, cache=kvcli.CacheDirectory(tmp_path), chunk_size=64)
    source = pipeline.tokenize(TEXT)
    for question in QUESTIONS:
        pipeline.answer(pipeline.prefill(source, question=question), question, max_tokens=2)
    assert lengths.count(len(source.ids)) == 1


def test_a_checkpoint_event_says_what_the_next_prefill_reuses(model: Any, tmp_path: Path) -> None:
    pipeline = kvcli.Pipeline(model, "keydiff(budget=128)", cache=kvcli.CacheDirectory(tmp_path), chunk_size=64)
    events: list[Any] = []
    with pytest.raises(PrefillInterrupted):
        pipeline.prefill(TEXT, on_event=events.append, stop=lambda: len(events) >= 3)
    assert isinstance(events[-1], Checkpoint)
    saved = events[-1].tokens
    assert saved == events[-2].done > 0
    events.clear()
    assert pipeline.prefill(TEXT, on_event=events.append).reused == saved
    assert events[0].tokens == saved


def test_the_events_of_a_question_come_in_order(model: Any) -> None:
    """Passages first, then tokens, then one answer whose text is the tokens' text."""
    pipeline = kvcli.Pipeline(model, "keydiff(budget=128)", chunk_size=64)
    *events, end = pipeline.ask(pipeline.prefill(TEXT), QUESTIONS[0], max_tokens=8, passages=2)
    assert isinstance(events[0], Reread)
    assert len(events[0].passages) == 2
    assert all(isinstance(event, Token) for event in events[1:])
    assert isinstance(end, Answer)
    assert end.text == "".join(event.text for event in events[1:])


def test_without_a_document_there_is_nothing_to_cite(model: Any) -> None:
    pipeline = kvcli.Pipeline(model, "full")
    result = pipeline.answer(pipeline.prefill(None), "Who?", max_tokens=4)
    assert result.citations.grounded is None
    assert result.usage.completion_tokens == 4


def test_what_cannot_be_is_refused_before_anything_is_read(model: Any) -> None:
    with pytest.raises(UsageError):
        kvcli.Pipeline(model, "nothing(budget=3)")
    with pytest.raises(UsageError):
        kvcli.Pipeline(model, budget="0%")
    with pytest.raises(UsageError):
        kvcli.Pipeline(model, kv_bits=3)
    with pytest.raises(InputError, match="depends on the question"):
        kvcli.Pipeline(model, "snapkv(budget=128)").prefill(TEXT)


def test_public_names_are_all_there() -> None:
    for name in kvcli.__all__:
        assert getattr(kvcli, name) is not None


def test_threads_tokenize_as_one_thread(model: Any) -> None:
    """A template's special tokens and the same letters in a text are different ids, whatever other threads do."""
    prompt = kvcli.Pipeline(model, "full").prompt
    texts = [f"<|end|> {n} " * (20 * n) for n in range(1, 9)]
    expected = [prompt.question(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(prompt.question, texts * 8)) == expected * 8
