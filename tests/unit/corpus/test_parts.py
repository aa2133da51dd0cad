"""Parts cover the text, and answers over them are those of asking about each part by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcli
from kvcli.corpus.parts import Over, PartAnswer, TextPart, ask_over, cut
from kvcli.documents import Document
from kvcli.errors import InputError, UsageError
from kvcli.events import Answer, Token
from tests.e2e.conftest import save_tiny

SENTENCE = "House number {n} is blue and the sky above it is wide. "


class Bytes:
    """Counts a token per character."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(text))]


def chapters(*lengths: int, heading: str) -> str:
    return "\n\n".join(
        f"{heading.format(n=n)}\n\n" + "".join(SENTENCE.format(n=n) for _ in range(length))
        for n, length in enumerate(lengths, 1)
    )


def read(tmp_path: Path, name: str, text: str) -> Document:
    (tmp_path / name).write_text(text)
    return kvcli.read_document(tmp_path / name)


@settings(max_examples=40)
@given(st.text("ab .\n", min_size=1, max_size=900), st.integers(16, 400))
def test_parts_cover_the_text_in_order(text: str, size: int) -> None:
    document = Document.of_text(text)
    parts = cut(document, Over("tokens", size), Bytes(), 8192)  # type: ignore[arg-type]
    assert "".join(text[part.start : part.end] for part in parts) == text
    assert all(0 < part.end - part.start <= size for part in parts)
    assert all(part.title for part in parts)


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("book.md", "# TextPart {n}"),
        ("book.txt", "CHAPTER {n}"),
        ("book.txt", "Letter {n}. To Mrs. Saville, England"),
        ("book.html", "<h2>House {n}</h2>"),
    ],
)
def test_chapters_are_those_of_the_headings(tmp_path: Path, name: str, heading: str) -> None:
    document = read(tmp_path, name, chapters(5, 6, 7, heading=heading))
    parts = cut(document, Over("chapters"), Bytes(), 8192)  # type: ignore[arg-type]
    assert "".join(document.text[part.start : part.end] for part in parts) == document.text
    assert len(parts) == 3
    for n, part in enumerate(parts, 1):
        assert str(n) in part.title
        assert f"House number {n}" in document.text[part.start : part.end]
        assert f"House number {n + 1}" not in document.text[part.start : part.end]


def test_a_title_above_all_chapters_and_a_table_of_contents_are_no_chapters(tmp_path: Path) -> None:
    book = read(tmp_path, "book.md", "# The book\n\n" + chapters(5, 6, heading="## TextPart {n}"))
    assert [p.title for p in cut(book, Over("chapters"), Bytes(), 8192)] == ["TextPart 1", "TextPart 2"]  # type: ignore[arg-type]
    contents = "\n\n".join(f"CHAPTER {n}" for n in (1, 2, 3))
    plain = read(tmp_path, "book.txt", f"{contents}\n\n{chapters(5, 5, 5, heading='CHAPTER {n}')}")
    assert len(cut(plain, Over("chapters"), Bytes(), 8192)) == 3  # type: ignore[arg-type]


def test_what_cannot_be_cut_is_refused() -> None:
    document = Document.of_text(SENTENCE * 20)
    for over in (Over("chapters"), Over("pages", 3)):
        with pytest.raises(InputError):
            cut(document, over, Bytes(), 8192)  # type: ignore[arg-type]
    assert len(cut(document, Over("chapters", fallback=True), Bytes(), 300)) > 1  # type: ignore[arg-type]
    for text in ("", "words", "pages", "pages:0", "tokens:1", "pages:-3", "chapters:2", "tokens:8M"):
        with pytest.raises(UsageError):
            Over.parse(text)
    assert (Over.parse("tokens:8K"), Over.parse("pages:20")) == (Over("tokens", 8192), Over("pages", 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return kvcli.load_model(str(save_tiny(tmp_path_factory.mktemp("model"), wide=True)), find_heads=False)


@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=64)", "keydiff(budget=64)+int8"])
def test_parts_are_answered_as_if_each_were_asked_about_alone(model: Any, recipe: str) -> None:
    """One reading and one cache that is rewound give what a new cache for each part gives."""
    text = "".join(SENTENCE.format(n=n) for n in range(12))
    pipeline = kvcli.Pipeline(model, recipe, chunk_size=64)
    context = pipeline.prefill(text)
    parts = cut(context.document, Over("tokens", 200), pipeline.prompt, 8192)  # type: ignore[arg-type]
    events = list(ask_over(pipeline, context, parts, "Which house?", max_tokens=8))
    found = [event for event in events if isinstance(event, PartAnswer)]
    assert [each.part for each in found] == parts
    assert len({each.answer.text for each in found}) > 1, "the model hears the parts"
    for each in found:
        again = [text[each.part.start : each.part.end].strip()]
        alone = pipeline.answer(context, "Which house?", again=again, max_tokens=8, cite=False)
        assert each.answer.text == alone.text
        assert each.answer.prompt_tokens == alone.usage.prompt_tokens - context.tokens
    said = "\n\n".join(f"{each.part.title}: {each.answer.text.strip()}" for each in found)
    last = pipeline.answer(context, "Which house?", again=[said], max_tokens=8, cite=False)
    assert isinstance(events[-1], Answer)
    assert events[-1].text == last.text


def test_a_part_after_a_full_context_is_the_whole_text_and_the_part(model: Any) -> None:
    """Context ‖ part is what reading the text, then the part, then the question in one go gives."""
    text = "".join(SENTENCE.format(n=n) for n in range(4))
    pipeline = kvcli.Pipeline(model, "full", chunk_size=64)
    context, empty = pipeline.prefill(text), pipeline.prefill(None)
    ids = pipeline.prompt.document(text) + pipeline.prompt.question("Who?", passages=[text[:90].strip()])
    part = TextPart(0, 90, "one")
    (answer,) = [
        e.answer for e in ask_over(pipeline, context, [part], "Who?", max_tokens=8) if isinstance(e, PartAnswer)
    ]
    assert answer.text == pipeline.answer(empty, ids, max_tokens=8, cite=False).text  # type: ignore[arg-type]


def test_many_answers_are_joined_in_steps_and_may_be_put_together(model: Any) -> None:
    text = "".join(SENTENCE.format(n=n) for n in range(12))
    pipeline = kvcli.Pipeline(model, "keydiff(budget=64)", chunk_size=64)
    context = pipeline.prefill(text)
    parts = [TextPart(n * 50, n * 50 + 50, f"part {n} {'with a long title ' * 20}") for n in range(8)]
    *_, end = ask_over(pipeline, context, parts, "Who?", max_tokens=6)
    assert isinstance(end, Answer)
    assert end.completion_tokens <= 6
    events = list(ask_over(pipeline, context, parts, "Who?", join="", max_tokens=6))
    assert isinstance(events[-1], Answer)
    assert events[-1].text == "".join(event.text for event in events if isinstance(event, Token))
    assert all(part.title in events[-1].text for part in parts)
