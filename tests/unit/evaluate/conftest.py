"""A tokenizer without a model, and a random model small enough to build in a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvcli.evaluate.token_counter import TokenCounter
from tests.e2e.conftest import save_tiny

WORDS = re.compile(r"\w{1,6}|[^\w\s]")


class Words:
    """Counts words, pieces of long words and marks; eight tokens stand before every text."""

    def document(self, text: str) -> list[int]:
        return [0] * (8 + len(WORDS.findall(text)))

    def tokenizer(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * len(WORDS.findall(text)) for text in texts]}


@pytest.fixture(scope="session")
def counter() -> TokenCounter:
    return TokenCounter(Words())


@pytest.fixture(scope="session")
def book() -> str:
    """Prose with abbreviations, quotations, paragraphs and lines that end inside a sentence."""
    chapter = (
        'Mr. Dunn looked at the letter. "Who sent it?" he asked his wife.\n\nShe did not\nanswer at once; the lamp on'
        " the table had gone out again, and she had to find a match. No. 7 was the last house of the street!\n\n"
    )
    return "".join(f"Chapter {n}.\n\n{chapter}" for n in range(1, 400))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from kvcli.cli.views.progress import run_with_progress
    from kvcli.models.load import load
    from kvcli.models.resolve import resolve

    path: Path = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    return load(run_with_progress(resolve(str(path), offline=True), quiet=True))
