"""Thoughts and answers, piece by piece."""

from __future__ import annotations

import pytest

from kvcli.chat.reasoning import ReasoningSplitter, strip_reasoning
from kvcli.cli.views.markdown import PlainAnswer

TOLD = "It is <b>Pip</b>, not <think>."


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "thinking", "thought", "said"),
    [
        ("<think>\nhm < think\n</think>\n\n" + TOLD, False, "hm < think", TOLD),
        ("\nhm\n\nwell\n</think>\n\n" + TOLD, True, "hm\n\nwell", TOLD),
        ("<think>\n\n</think>\n\n" + TOLD, False, "", TOLD),
        (TOLD, False, "", TOLD),
        ("<think>never </thin", False, "never </thin", ""),
        ("<thin", False, "", "<thin"),
    ],
)
def test_thoughts_are_told_from_the_answer_however_they_come(
    size: int, text: str, thinking: bool, thought: str, said: str
) -> None:
    thoughts = ReasoningSplitter(thinking=thinking)
    pieces = [p for i in range(0, len(text), size) for p in thoughts.push(text[i : i + size])] + thoughts.flush()
    assert ("".join(t for t, of in pieces if of), "".join(t for t, of in pieces if not of)) == (thought, said)
    assert strip_reasoning(text, thinking=thinking) == said


def test_thoughts_keep_their_tags_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainAnswer()
    for text, thought in (("hm", True), (" so", True), ("Pip.\n", False)):
        lines.write(text, reasoning=thought)
    lines.end()
    assert capsys.readouterr().out == "<think>\nhm so\n</think>\n\nPip.\n"
