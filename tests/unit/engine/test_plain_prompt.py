"""The prompt of a model without a chat template: a text to complete, and no words of a template."""

import pytest

from kvcli.engine import prompt as prompts
from kvcli.engine.prompt import ANSWER_RULE, Prompt
from tests.e2e.conftest import byte_tokenizer

TEXT, QUESTION = " The ship is called <|end|> Pequod.", "What is the ship called?"
OURS = [v for k, v in vars(prompts).items() if k.endswith(("INTRO", "RULE", "END")) and isinstance(v, str)]


@pytest.fixture
def words():  # type: ignore[no-untyped-def]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_the_text_then_a_question_then_its_answer(words) -> None:  # type: ignore[no-untyped-def]
    prompt = Prompt(words)
    assert prompt.plain
    text = words.decode(prompt.document(TEXT) + prompt.question(QUESTION))
    assert text == f"{TEXT}\n\nQuestion about this text: {QUESTION}\nAnswer:"


def test_no_words_of_a_template_are_in_any_prompt(words) -> None:  # type: ignore[no-untyped-def]
    prompt = Prompt(words)
    passages = ("One passage.", "Another.")
    made = [
        prompt.document(TEXT, question=QUESTION),
        prompt.question(QUESTION, document=False),
        prompt.question(QUESTION, passages=passages),
        prompt.follow_up(QUESTION),
        prompt.follow_up(QUESTION, passages=passages),
        prompt.conversation([("system", "Be kind."), ("user", QUESTION), ("assistant", "Pequod"), ("user", "Why?")]),
    ]
    for ids in made:
        text = words.decode(ids)
        assert not any(ours.strip() in text for ours in OURS)
        assert not any(mark in text for mark in ("<|user|>", "<|assistant|>", "\x02", "\x03"))
    assert words.decode(made[1]) == f"Question: {QUESTION}\nAnswer:"
    assert words.decode(made[3]) == f"\n\nQuestion: {QUESTION}\nAnswer:"
    assert words.decode(made[5]).endswith("Answer: Pequod\n\nQuestion: Why?\nAnswer:")
    assert "One passage.\n\nAnother." in words.decode(made[2])


def test_the_words_of_a_task_stay(words) -> None:  # type: ignore[no-untyped-def]
    prompt = Prompt(words, before="In French: ", after=" Be short.")
    assert words.decode(prompt.question(QUESTION)) == (
        f"\n\nQuestion about this text: In French: {QUESTION} Be short.\nAnswer:"
    )
    assert ANSWER_RULE.strip() not in words.decode(Prompt(words).question(QUESTION))


def test_characters_of_the_document_are_found_again(words) -> None:  # type: ignore[no-untyped-def]
    prompt = Prompt(words)
    ids, places = prompt.document(TEXT), prompt.offsets(TEXT)
    assert "".join(TEXT[a:b] for a, b in places) == TEXT
    assert words.decode(ids[-len(places) :]).lstrip() == TEXT.lstrip()


@pytest.mark.parametrize("raw", [False, True])
def test_models_with_a_template_and_raw_prompts_are_not_plain(raw: bool) -> None:
    words = byte_tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert not Prompt(words, raw=raw).plain
