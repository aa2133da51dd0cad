"""What holds for a conversation, whatever is said in it."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch

import kvcli
from kvcli.chat.conversation import ChatContext, Conversation
from kvcli.chat.setup import open_chat
from kvcli.documents.document import Document
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import evict_turns
from kvcli.engine.sampling import Sampling
from kvcli.errors import InputError, TooLongError
from kvcli.events import Answer, Token
from kvcli.models.model import Model
from kvcli.recipe import parse
from tests.laws.helpers import drain, filled
from tests.unit.chat.conftest import CHUNK, TEXT, Talk, base

QUESTIONS = [f"What is number {n}?" for n in range(12)]


def say(talk: Conversation, text: str, count: int = 8, **how: object) -> Answer:
    (answer,) = [e for e in talk.ask(text, max_tokens=count, **how) if isinstance(e, Answer)]  # type: ignore[arg-type]
    return answer


def held(talk: Conversation) -> list[torch.Tensor]:
    """Keys and values that the next question attends to: those kept, and those of the tail."""
    assert talk.cache is not None
    tail = [t[:, : talk.cache.length].clone() for layer in talk.cache.layers for t in (layer.k, layer.v)]
    kept = [] if talk.context is None else [t for layer in talk.context.layers for t in (layer.k, layer.v)]
    return kept + tail


def plain_ground(talk: Conversation) -> ChatContext:
    for _ in talk.open():
        pass
    assert talk.base is not None
    return talk.base


def equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("recipe", ["keydiff(budget=96, stabilizers=16)", "full"])
def test_a_fact_of_the_first_turn_is_known_as_long_as_it_is_kept(talk: Talk, recipe: str) -> None:
    """With a budget for everything, evicted turns answer as those in the tail do."""
    short, long = talk(TEXT, recipe.replace("96", "4000"), room=120), talk(TEXT, "keydiff(budget=4000)", room=4000)
    answers = [say(long, q).text for q in QUESTIONS]
    assert [say(short, q).text for q in QUESTIONS] == answers
    assert len(set(answers)) > len(QUESTIONS) // 2, "answers depend on what was said"
    assert len(short.evictions) >= 3
    assert not long.evictions


def test_turns_are_read_as_the_documents_continuation(model, talk: Talk) -> None:
    """What is behind the document and the answer to it are those of one text under the same recipe."""
    recipe = "keydiff(budget=96, stabilizers=0)"
    chat = talk(TEXT, recipe)
    while not chat.evictions:
        say(chat, QUESTIONS[len(chat.turns)])
    prompt, end = base(model, TEXT, recipe).prompt, chat.evictions[0]
    ids = prompt.question(chat.turns[0].question) + list(chat.turns[0].ids)
    for turn in chat.turns[1:end]:
        ids += prompt.follow_up(turn.question) + list(turn.ids)
    work = filled(model, prompt.document(TEXT), recipe, CHUNK, horizon=4096)
    tail = new_decode_cache(model, drain(evict_turns(model, work, ids, parse(recipe), chunk=CHUNK)))
    found = [
        e.id
        for e in generate(model, tail, prompt.follow_up(chat.turns[end].question), max_tokens=8)
        if isinstance(e, Token)
    ]
    assert tuple(found) == chat.turns[end].ids


def test_a_further_question_is_what_the_template_makes_of_all_messages(model) -> None:
    """No token is between turns that the model's own template would not put there."""
    for system in (None, "Be brief."):
        prompt = base(model, "", "full", system=system).prompt
        ids = prompt.question("Who?", document=False) + prompt.reply("Pip.") + prompt.follow_up("Who else?")
        messages = [{"role": "system", "content": system}] * bool(system) + [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Pip."},
            {"role": "user", "content": "Who else?"},
        ]
        whole = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert model.tokenizer.decode(ids) == whole


def test_passages_are_read_for_one_answer_and_leave_no_trace(model, talk: Talk) -> None:
    """Each answer is that of all turns so far, plain, and of the last question with its passages before it."""
    shown = {question: (f"The answer to {question} is {n}.", "It rained.") for n, question in enumerate(QUESTIONS)}
    recipe = "keydiff(budget=96, stabilizers=16)"
    chat = talk(TEXT, recipe, room=2000, reread=lambda context, question: (shown[question], context))
    plain = talk(TEXT, recipe, room=2000)
    prompt, text = plain_ground(plain).prompt, list[int]()
    for n, question in enumerate(QUESTIONS[:4]):
        ask, given = (prompt.follow_up, {}) if n else (prompt.question, {"document": True})
        say(chat, question)
        tail = new_decode_cache(model, plain.context)
        asked = [*text, *ask(question, passages=shown[question], **given)]  # type: ignore[operator]
        found = [e.id for e in generate(model, tail, asked, max_tokens=8, chunk=CHUNK) if isinstance(e, Token)]
        assert tuple(found) == chat.turns[-1].ids
        assert chat.cache.length == len(text)  # turns are read once
        text += [*ask(question, **given), *found]  # type: ignore[operator]
        assert chat.used == len(text)
    assert any(say(plain, q).text != turn.answer for q, turn in zip(QUESTIONS, chat.turns, strict=False))
    before, last = held(chat), chat.turns[-1]
    assert chat.undo() == last
    assert say(chat, last.question).text == last.answer
    assert equal(held(chat), before)
    assert chat.used == len(text)


@pytest.mark.parametrize("turns", [1, 3])
def test_undo_and_the_same_question_again_are_bit_identical(talk: Talk, turns: int) -> None:
    chat = talk(room=2000)
    for question in QUESTIONS[:turns]:
        say(chat, question)
    before = held(chat)
    first = say(chat, "And then?", sampling=Sampling(0.9, seed=3))
    after = held(chat)
    assert chat.undo().question == "And then?"
    assert equal(held(chat), before)
    assert say(chat, "And then?", sampling=Sampling(0.9, seed=3)).text == first.text
    assert equal(held(chat), after)
    again = list(chat.retry(sampling=Sampling(0.9, seed=3), max_tokens=8))[-1]
    assert isinstance(again, Answer)
    assert again.text == first.text
    assert equal(held(chat), after)


def test_undo_of_what_was_absorbed(talk: Talk) -> None:
    """Turns that have been evicted into the context can be forgotten too, and the rest is as if they had never been."""
    chat, other = talk(), talk()
    while len(chat.evictions) < 2:
        say(chat, QUESTIONS[len(chat.turns)])
    left = chat.evictions[0] - 1
    while len(chat.turns) > left:
        chat.undo()
    assert not chat.evictions
    for question in QUESTIONS[:left]:
        say(other, question)
    assert say(chat, "And then?").text == say(other, "And then?").text


def test_clear_keeps_the_document(talk: Talk) -> None:
    fresh = say(talk(), "Who?").text
    chat = talk()
    for absorbed in (0, 1):
        say(chat, "What?")
        while len(chat.evictions) < absorbed:
            say(chat, "What?")
        chat.clear()
        assert say(chat, "Who?").text == fresh
        assert len(chat.turns) == 1


@pytest.mark.parametrize("text", [TEXT, ""])
def test_going_on_from_what_was_saved(talk: Talk, text: str) -> None:
    """Resumed after any turn, the next answer is that of the conversation that was never broken off."""
    chat = talk(text, room=120)
    states = []
    for question in QUESTIONS:
        states.append((list(chat.turns), list(chat.evictions)))
        say(chat, question)
    assert len(chat.evictions) >= 2
    for n in (0, 1, chat.evictions[0], chat.evictions[1], len(QUESTIONS) - 1):
        turns, absorbed = states[n]
        resumed = talk(text, room=120, turns=turns, evictions=absorbed)
        assert say(resumed, QUESTIONS[n]).text == chat.turns[n].answer


def test_a_question_of_the_document_is_answered_as_by_ask(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model that answers from quotes alone; the next turn reads question and answer as they were written."""
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (model.name,))
    pipeline, document = kvcli.Pipeline(model, chunk_size=CHUNK), Document.of_text(TEXT)
    question, instruction = "Where was Queequeg a native of?", "Tell me more."
    unread = pipeline.unread(document, question)
    assert unread is not None
    expected = pipeline.answer(unread, question, max_tokens=8, from_quotes=None)
    chat, plain = (open_chat(pipeline, document, max_tokens=64) for _ in range(2))
    assert say(chat, question).text == expected.text == chat.turns[0].answer
    assert expected.text in TEXT
    say(chat, instruction)
    resumed = Conversation(model, chat._make, turns=chat.turns[:1])
    assert say(resumed, instruction).text == chat.turns[1].answer
    assert equal(held(resumed), held(chat))
    say(chat, question)
    while chat.turns:
        chat.undo()
    assert say(chat, instruction).text == say(plain, instruction).text
    assert equal(held(chat), held(plain)), "nothing is left of what was undone"
    for name, recipe in (("Who won the regatta of Cork?", None), (question, "keydiff(budget=512)")):
        usual = open_chat(kvcli.Pipeline(model, recipe, chunk_size=CHUNK), document, max_tokens=64)
        assert say(usual, name).text not in TEXT


@pytest.mark.parametrize("stop_at", [0, 1, 5])
def test_an_interrupted_answer_is_kept_as_far_as_it_got(talk: Talk, stop_at: int) -> None:
    saved = []
    chat = talk(changed=lambda: saved.append((len(chat.turns), chat.unanswered)))
    say(chat, "Who?")
    whole = say(chat, "What?").text
    chat.undo()
    events = chat.ask("What?", max_tokens=8)
    if stop_at == 0:
        engine_forward, chat.model.module.forward = chat.model.module.forward, _interrupt
        try:
            with pytest.raises(KeyboardInterrupt):
                next(events)
        finally:
            chat.model.module.forward = engine_forward
        assert (len(chat.turns), chat.unanswered) == (1, "What?")
        assert saved[-1] == (1, "What?")
    else:
        text = "".join(next(events).text for _ in range(stop_at))  # type: ignore[union-attr]
        events.close()
        assert chat.turns[-1].answer == text == whole[: len(text)]
        assert chat.turns[-1].finish == "interrupted"
        assert saved[-1] == (2, None)
    assert list(chat.retry(max_tokens=8))[-1].text == whole  # type: ignore[union-attr]
    assert [t.question for t in chat.turns] == ["Who?", "What?"]


def _interrupt(*_args: object, **_kwargs: object) -> None:
    raise KeyboardInterrupt


def test_what_follows_an_interrupted_answer_follows_what_was_shown(talk: Talk) -> None:
    """The next question stands behind exactly the tokens that were shown, as if the answer had ended there."""
    chat = talk()
    events = chat.ask("Who?", max_tokens=8)
    for _ in range(3):
        next(events)
    events.close()
    other = talk(turns=chat.turns)
    assert len(chat.turns[0].ids) == 3
    assert say(chat, "What?").text == say(other, "What?").text


def test_an_interrupted_absorption_is_done_again(talk: Talk) -> None:
    chat = talk()
    while not chat.evictions:
        before = (list(chat.turns), list(chat.evictions))
        say(chat, question := QUESTIONS[len(chat.turns)])
    broken = talk(turns=before[0])
    list(broken.open())
    step = broken.ask(question, max_tokens=8)
    next(step)  # one chunk of the tail has been absorbed
    step.close()
    assert broken.context is None
    assert say(broken, question).text == chat.turns[-1].answer


def test_bad_messages(talk: Talk) -> None:
    chat = talk()
    with pytest.raises(InputError, match="empty"):
        say(chat, "  ")
    with pytest.raises(InputError, match="no turn"):
        chat.undo()
    with pytest.raises(TooLongError, match=r"372 tokens.* at most 200"):
        say(chat, "x" * 300)
    assert chat.turns == []
    say(chat, "Who?")


def test_a_recipe_that_evicts_nothing_says_when_it_is_full(talk: Talk) -> None:
    chat = talk(TEXT, "full", room=200, total=500)
    while chat.used < 150:
        say(chat, "And then?", 40)
    with pytest.raises(TooLongError, match="500 tokens"):
        say(chat, "And then? " * 10, 40)
    chat.clear()
    say(chat, "Who?")


def test_what_turns_were_evicted_from_is_freed(talk: Talk) -> None:
    """At once, the document's own context too: a long conversation never holds the old beside the new."""
    chat = talk(TEXT)
    say(chat, QUESTIONS[0])
    gc.collect()
    gc.disable()
    try:
        old = [ref(chat.context), ref(chat.cache)]
        while not chat.evictions:
            say(chat, QUESTIONS[len(chat.turns)])
        assert [part() for part in old] == [None, None]
        old = [ref(chat.context), ref(chat.cache), ref(chat.base.work)]  # type: ignore[union-attr]
        chat.clear()
        assert [part() for part in old] == [None, None, None]
    finally:
        gc.enable()
    assert say(chat, QUESTIONS[0]).text


def test_a_turn_that_was_cut_is_remembered_as_it_was_printed(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next answer is that of a conversation which never had the repetition."""
    monkeypatch.setattr("kvcli.engine.repetition.RepetitionGuard.LOOP", 4)
    chat = talk(TEXT, room=600)
    answer = say(chat, QUESTIONS[0], 200, allow_repetition=False)
    assert answer.cut
    assert chat.turns[0].answer == answer.text
    other = talk(TEXT, room=600, turns=chat.turns)
    assert say(chat, QUESTIONS[1]).text == say(other, QUESTIONS[1]).text
    assert equal(held(chat), held(other))
    chat.undo()
    chat.undo()
    assert chat.used == 0
