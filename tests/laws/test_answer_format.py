"""An answer of a given form has it, whatever the model would rather say; else it is the answer without a form."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcli
from kvcli import AnswerFormat, UsageError
from kvcli.engine.sampling import Sampling
from tests.e2e.conftest import byte_tokenizer, save_tiny

TEXT = '{"who": "Ada", "when": 1843} and {"who": "Bob", "when": 7} are in this text. ' * 6


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = kvcli.load_model(str(save_tiny(tmp_path_factory.mktemp("formats") / "tiny", wide=True)), find_heads=False)
    return kvcli.Pipeline(model, "keydiff(budget=64)", chunk_size=32)


@pytest.fixture(scope="module")
def context(pipeline: Any) -> Any:
    return pipeline.prefill(TEXT)


NAMES = st.text('abc ü"\\\n', max_size=3)
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda a, n: {"type": "integer", "minimum": a, "maximum": a + n}, st.integers(-50, 50), st.integers(0, 9)
    ),
    st.builds(
        lambda n, m: {"type": "string", "minLength": n, "maxLength": n + m}, st.integers(0, 3), st.integers(0, 3)
    ),
    st.builds(lambda texts: {"enum": texts}, st.lists(NAMES | st.integers() | st.none(), min_size=1, max_size=3)),
    st.just({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def of(fields: dict[str, Any], every: bool) -> Any:
        needed = list(fields) if every else []
        return {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}

    return st.builds(of, st.dictionaries(NAMES, inner, max_size=3), st.booleans())


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner)
        | st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(0, 2))
        | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2))
    ),
    max_leaves=4,
)


@settings(max_examples=12, deadline=None)
@given(schema=SCHEMAS, temperature=st.sampled_from([0.0, 1.0, 8.0]), seed=st.integers(0, 99))
def test_every_answer_is_valid(pipeline: Any, context: Any, schema: Any, temperature: float, seed: int) -> None:
    form, sampling = AnswerFormat.json_schema(schema), Sampling(temperature=temperature, seed=seed)
    found = pipeline.answer(context, "Who?", answer_format=form, sampling=sampling, max_tokens=900, cite=False)
    assert found.finish_reason == "stop"
    jsonschema.validate(json.loads(found.text), schema)
    cut = pipeline.answer(context, "Who?", answer_format=form, sampling=sampling, max_tokens=1, cite=False)
    assert cut.finish_reason == ("stop" if cut.text == found.text else "length")


@settings(max_examples=8, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=4, unique=True))
def test_a_choice_is_one_of_them(pipeline: Any, context: Any, texts: list[str]) -> None:
    texts = [text for text in texts if text.isprintable()] + ["ja", "jawohl"]
    found = pipeline.answer(context, "Who?", answer_format=AnswerFormat.choices(texts), cite=False)
    assert found.text in texts
    assert found.finish_reason == "stop"


def test_a_form_that_allows_the_free_answer_changes_nothing(pipeline: Any, context: Any) -> None:
    ids = pipeline.prompt.question("Who?", document=True)
    free = pipeline.answer(context, ids, max_tokens=12, cite=False).text
    for texts in ([free, "no"], [free[::-1], free]):
        assert pipeline.answer(context, ids, answer_format=AnswerFormat.choices(texts), cite=False).text == free


def test_drafts_change_no_answer_of_a_form(pipeline: Any, context: Any) -> None:
    """The text has answers of this form, so drafts are looked up in it."""
    fields = {"who": {"enum": ["Ada", "Bob"]}, "when": {"enum": [1843, 7]}}
    person = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    form = AnswerFormat.json_schema({"type": "array", "minItems": 4, "maxItems": 4, "items": person})
    options = {"answer_format": form, "max_tokens": 300, "allow_repetition": True}
    ends = []
    for drafts in (True, False):
        *_, end = pipeline.ask(context, "Who?", drafts=drafts, **options)
        ends.append(end)
    assert ends[0].text == ends[1].text
    assert ends[0].finish_reason == "stop"
    assert ends[0].steps < ends[1].steps


def test_reasoning_that_the_template_opens_is_ended_before_the_form(pipeline: Any) -> None:
    tokenizer = byte_tokenizer("<think>", "</think>")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>", "<|assistant|><think>\n")
    prompt = type(pipeline.prompt)(tokenizer)
    assert tokenizer.decode(prompt.no_reasoning()) == "</think>\n\n"
    assert pipeline.prompt.no_reasoning() == []


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "nothing"},
        {"$ref": "http://localhost:1/person.json"},
        {"$ref": "file:///etc/passwd"},
        {"not": {"type": "string"}},
        {"type": "string", "pattern": "("},
        {"enum": []},
    ],
)
def test_schemas_that_cannot_be_kept_are_refused(schema: Any) -> None:
    with pytest.raises(UsageError):
        AnswerFormat.json_schema(schema)


@pytest.mark.parametrize("texts", [[], ["yes"], ["yes", "yes"], ["", "no"]])
def test_fewer_than_two_choices_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        AnswerFormat.choices(texts)


def test_what_would_cut_the_form_is_refused(pipeline: Any, context: Any) -> None:
    form = AnswerFormat.json_object()
    for options in ({"stop": ("}",)}, {"from_quotes": True}):
        with pytest.raises(UsageError):
            next(iter(pipeline.ask(context, "Who?", answer_format=form, **options)))
