"""A conversation, with the citations of its answers, as Markdown, HTML or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.cli.views.page import Section, as_html, as_markdown
from kvcli.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from kvcli.chat.transcript import Transcript, Turn

SUFFIXES = (".md", ".html", ".json")


def export(path: Path, saved: Transcript, cited: Callable[[Turn], tuple[str, list[str]]]) -> None:
    """Write a conversation to a file.

    Args:
        path: its suffix is the form.
        saved: the conversation.
        cited: gives the answer of a turn with the numbers of its citations, and these, one line each.

    Raises:
        UsageError: another suffix.
        ResourceError: the file cannot be written.
    """
    from kvcli.chat import transcript

    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: the name must end in {', '.join(SUFFIXES)}", "/export chat.md")
    title = ", ".join(Path(name).name for name in (*saved.files, *saved.added)) or "A conversation"
    if path.suffix == ".json":
        text = json.dumps(asdict(saved), ensure_ascii=False, indent=1) + "\n"
    else:
        sections = []
        for turn in saved.turns:
            answer, lines = cited(turn)
            sections.append(Section(turn.question, answer.strip() or "(no answer)", tuple(lines)))
        text = as_markdown(title, sections) if path.suffix == ".md" else as_html(title, sections)
    try:
        transcript.write(path, text)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}", "/export another/folder/chat.md") from None
