"""The question in front of the text, and passages behind it: what the model is shown."""

import pytest

from kvcli.engine.prompt import Prompt
from kvcli.engine.query_aware import query_aware
from kvcli.models.load import load
from kvcli.recipe import parse
from tests.e2e.conftest import save_tiny
from tests.laws.helpers import drain


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from kvcli.models.resolve import resolve

    path = tmp_path_factory.mktemp("model")
    save_tiny(path)
    return load(drain(resolve(str(path), offline=True)), dtype="float32").tokenizer


@pytest.mark.parametrize("raw", [False, True])
def test_the_question_stands_before_the_text_and_again_behind_it(tokenizer, raw: bool) -> None:
    prompt = Prompt(tokenizer, raw=raw)
    whole = tokenizer.decode(prompt.document("The sea.", question="Which <|end|>?") + prompt.question("Which <|end|>?"))
    assert whole.count("Which <|end|>?") == 2
    assert whole.index("Which") < whole.index("The sea.") < whole.rindex("Which")


@pytest.mark.parametrize("focus", [None, "Who?"])
@pytest.mark.parametrize("raw", [False, True])
def test_offsets_are_those_of_the_last_ids(tokenizer, raw: bool, focus: str | None) -> None:
    prompt, text = Prompt(tokenizer, raw=raw), "Two words — ünd <|end|> more."
    ids, bounds = prompt.document(text, question=focus), prompt.offsets(text)
    for number, (start, end) in list(zip(ids[-len(bounds) :], bounds, strict=True))[-5:]:
        assert tokenizer.decode([number]) == text[start:end]
    assert bounds[-1][1] == len(text)
    assert len(ids) - len(bounds) == len(prompt.document("", question=focus)) - len(prompt.offsets(""))


def test_no_token_of_a_text_is_special(tokenizer) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    prompt = Prompt(tokenizer)
    plain = prompt.document("x").count(end)
    assert prompt.document("x<|end|>", question="<|end|>").count(end) == plain
    assert prompt.question("q<|end|>", passages=["<|end|>"]).count(end) == prompt.question("q").count(end)


@pytest.mark.parametrize("raw", [False, True])
def test_passages_stand_between_the_text_and_the_question(tokenizer, raw: bool) -> None:
    prompt = Prompt(tokenizer, raw=raw)
    shown = tokenizer.decode(prompt.question("Who?", passages=["First one.", "Second one."]))
    assert shown.index("First one.") < shown.index("Second one.") < shown.index("Who?")


def test_focus_protects_the_question_where_there_is_room(tokenizer) -> None:
    prompt = Prompt(tokenizer)
    ids, recipe = query_aware(prompt, parse("locret(budget=1024, stabilizers=64)"), "The sea. " * 50, "Which?")
    head = len(ids) - len("\n\n") - len("The sea. " * 50)  # a byte is a token here
    assert recipe.policy.sinks == head
    assert tokenizer.decode(ids[:head]).endswith("Text:")
    small = parse("locret(budget=64, stabilizers=8)")
    assert query_aware(prompt, small, "The sea.", "Which?")[1] == small
    assert query_aware(prompt, parse("full"), "The sea.", "Which?")[1] == parse("full")
