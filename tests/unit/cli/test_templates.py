"""Templates of ``kvcli ask -t``."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcli.cli import templates
from kvcli.cli.request import parse_request
from kvcli.engine.prompt import ANSWER_RULE, Prompt
from kvcli.errors import UsageError
from tests.e2e.conftest import byte_tokenizer


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVCLI_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "templates").mkdir()
    return tmp_path / "templates"


def test_every_shipped_template_is_valid_and_tasks_of_other_words_do_not_ask_for_exact_ones() -> None:
    found = {name: templates.load(name) for name in templates.names()}
    assert {"answer", "quote", "summary", "translate", "compare", "extract"} <= set(found)
    assert all(template.about for template in found.values())
    assert [name for name, template in found.items() if template.quotes_only] == ["quote"]
    assert [name for name, template in found.items() if "exact words" in template.after] == ["answer"]
    assert found["answer"].after == ANSWER_RULE.strip(), "asked from the library and from the command line alike"


def test_an_own_template_comes_before_a_shipped_one(own: Path) -> None:
    (own / "answer.toml").write_text('after = "Be brief."\nschema = "a.json"\n[sampling]\ntemp = 1\ntop-k = 5\n')
    template = templates.load("answer")
    assert (template.after, template.sampling) == ("Be brief.", {"temp": 1, "top-k": 5})
    assert template.schema == str(own / "a.json")


@pytest.mark.parametrize(
    "text",
    [
        'afer = "x"',
        "after = 1",
        "max-tokens = true",
        "max-tokens = 0",
        'max_tokens = "9"',
        "[sampling]\nheat = 1.0",
        '[sampling]\ntemp = "hot"',
        "sampling = 1",
        'cite = "maybe"',
        "quotes-only = 1",
        'quotes-only = true\nafter = "Briefly."',
        "not toml",
    ],
)
def test_what_a_template_cannot_have_is_an_error(own: Path, text: str) -> None:
    (own / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=r"mine\.toml"):
        templates.load("mine")


@pytest.mark.parametrize("name", ["sumary", "nothing-like-it", "../answer"])
def test_an_unknown_template_is_an_error(name: str) -> None:
    with pytest.raises(UsageError):
        templates.load(name)


def test_the_usual_question_is_asked_if_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("x")
    asked = parse_request([str(file)], [], [], [], "What is in it?")
    assert ([q.text for q in asked.questions], asked.files) == (["What is in it?"], (str(file),))
    assert [q.text for q in parse_request([str(file), "Who?"], [], [], [], "What?").questions] == ["Who?"]
    assert [q.text for q in parse_request([str(file)], [], ["Who?"], [], "What?").questions] == ["Who?"]
    with pytest.raises(UsageError):
        parse_request([str(file)], [], [], [])


def test_templates_share_what_is_read_of_a_document() -> None:
    tokenizer = byte_tokenizer()
    plain, task = Prompt(tokenizer), Prompt(tokenizer, before="Compare: ", after="\nBriefly.")
    assert plain.document("A text.") == task.document("A text.")
    bare = tokenizer.decode(Prompt(tokenizer, after="").question("Who?"))
    assert tokenizer.decode(task.question("Who?")) == bare.replace("Who?", "Compare: Who?\nBriefly.")
    assert "Compare: Who?" in tokenizer.decode(task.question("Who?", document=False))
