"""``/page`` where printed numbers and those of a viewer differ."""

from types import SimpleNamespace
from typing import Any

import pytest

from kvcli.cli.chat.commands import Commands
from kvcli.documents import Document, Span
from kvcli.errors import InputError


def test_a_number_that_is_two_pages_shows_one_and_names_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {1: ("i", "Contents"), 2: ("ii", ""), 3: ("1", "Of whales"), 4: ("2", "Of ships"), 5: ("3", "Of men")}
    text, spans = "", []
    for page, (label, words) in texts.items():
        spans.append(Span(len(text), len(text) + len(words) + 2, len(text), "a.pdf", page, label))
        text += words + "\n\n"
    document = Document(text, ("a.pdf",), "0" * 64, len(text), spans=tuple(spans), pages=5)
    session: Any = SimpleNamespace(setup=SimpleNamespace(document=document))
    commands = Commands(session, lambda _: True)

    def shown(page: str) -> str:
        commands.run(f"/page {page}")
        return capsys.readouterr().out

    assert shown("3") == "Of whales\nthe page printed 3 is p. 5 (printed 3): /page 5\n"
    assert shown("2") == "p. 2 (printed ii) has no text\nthe page printed 2 is p. 4 (printed 2): /page 4\n"
    assert shown("i") == "Contents\n"
    assert shown("5") == "Of men\n"
    with pytest.raises(InputError):
        commands.run("/page 6")
