"""Generation: what comes out is what the logits say, in pieces that add up."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.sampling import RepeatPenalty, Sampling, sample
from kvcli.errors import InputError
from kvcli.events import Answer, Token
from kvcli.models.load import wrap
from tests import tiny


class Bytes:
    """A tokenizer of single bytes with transformers' one private attribute that streaming needs."""

    def __init__(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {c: i for i, c in enumerate(alphabet[: tiny.SIZES["vocab_size"]])}
        self._tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        self._tokenizer.decoder = decoders.ByteLevel()


@pytest.fixture(scope="module")
def speaker():
    return wrap(tiny.build("llama"), Bytes(), name="llama", fingerprint=None)


def run(model, **options: object) -> tuple[list[Token], Answer]:
    *tokens, answer = generate(model, new_decode_cache(model, None), tiny.document(12), **options)  # type: ignore[arg-type]
    assert isinstance(answer, Answer)
    return tokens, answer  # type: ignore[return-value]


def test_pieces_add_up_to_the_answer(speaker) -> None:
    tokens, answer = run(speaker, max_tokens=40)
    assert "".join(t.text for t in tokens) == answer.text
    assert answer.prompt_tokens == 12


def test_greedy_is_reproducible_and_is_the_argmax(speaker) -> None:
    first, second = run(speaker, max_tokens=10), run(speaker, max_tokens=10)
    assert [t.id for t in first[0]] == [t.id for t in second[0]]
    from tests.laws.helpers import reference

    ids = tiny.document(12)
    for token in (t for t in first[0] if t.id >= 0):
        assert token.id == int(reference(speaker, ids)[-1].argmax())
        ids.append(token.id)


def test_length_is_said(speaker) -> None:
    _, answer = run(speaker, max_tokens=3)
    assert (answer.finish_reason, answer.completion_tokens) in {("length", 3), ("stop", answer.completion_tokens)}


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(speaker) -> None:
    text = run(speaker, max_tokens=30)[1].text
    cut = text[5:8]
    tokens, answer = run(speaker, max_tokens=30, stop=[cut])
    assert answer.text == text[: text.find(cut)]
    assert answer.finish_reason == "stop"
    assert "".join(t.text for t in tokens) == answer.text


def test_a_seed_draws_the_same_and_another_one_differs(speaker) -> None:
    def draw(seed: int) -> list[int]:
        return [t.id for t in run(speaker, max_tokens=20, sampling=Sampling(temperature=3.0, seed=seed))[0]]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_an_empty_question_is_refused(speaker) -> None:
    with pytest.raises(InputError, match="no tokens"):
        next(generate(speaker, new_decode_cache(speaker, None), []))


def test_closing_early_leaves_a_usable_tail(speaker) -> None:
    tail = new_decode_cache(speaker, None)
    answer = generate(speaker, tail, tiny.document(12), max_tokens=50)
    next(answer)
    answer.close()
    tail.rewind()
    again = [t.id for t in generate(speaker, tail, tiny.document(12), max_tokens=5) if isinstance(t, Token)]
    assert again == [t.id for t in run(speaker, max_tokens=5)[0]]


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (Sampling(temperature=1.0, top_k=1), {3}),
        (Sampling(temperature=1.0, top_k=2), {3, 1}),
        (Sampling(temperature=1.0, top_p=0.5), {3}),
        (Sampling(temperature=1.0, top_p=0.8), {3, 1}),
        (Sampling(temperature=1.0, min_p=0.3), {3, 1}),
        (Sampling(temperature=1.0), {0, 1, 2, 3}),
    ],
)
def test_what_sampling_may_choose(how: Sampling, allowed: set[int]) -> None:
    logits = torch.tensor([0.05, 0.3, 0.05, 0.6]).log()
    generator = torch.Generator().manual_seed(0)
    assert {int(sample(logits, how, generator)) for _ in range(200)} == allowed


@pytest.fixture(scope="module")
def whirl():
    """A model whose layers add nothing, so that each token has one that follows it, always."""
    module = tiny.build("llama")
    for name, weight in module.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            torch.nn.init.zeros_(weight)
    return wrap(module, Bytes(), name="whirl", fingerprint=None)


@pytest.mark.parametrize("ahead", [False, True])
def test_an_answer_in_circles_is_ended_where_that_is_asked_for(whirl, ahead: bool) -> None:
    whole, _ = run(whirl, max_tokens=1200)
    tail = new_decode_cache(whirl, None)
    *tokens, answer = generate(whirl, tail, tiny.document(12), max_tokens=1200, allow_repetition=False, ahead=ahead)
    assert isinstance(answer, Answer)
    assert (answer.finish_reason, answer.stopped_repeating) == ("length", True)
    made = [t.id for t in tokens if t.id >= 0]
    assert made == [t.id for t in whole if t.id >= 0][: len(made)]
    text = "".join(t.text for t in whole)
    assert answer.cut
    assert "".join(t.text for t in tokens) == answer.text == text[: len(answer.text)]
    assert len(made) < 1199
    assert tail.length == 12 + answer.completion_tokens - 1


def test_the_penalty_lowers_tokens_that_were_said_and_no_others() -> None:
    penalty, logits = RepeatPenalty(2.0), torch.tensor([2.0, -2.0, 3.0])
    assert torch.equal(penalty.apply(logits), logits)
    penalty.push(torch.tensor([0]))
    penalty.push(torch.tensor([1]))
    assert penalty.apply(logits).tolist() == [1.0, -4.0, 3.0]
    assert torch.equal(RepeatPenalty(1.0).apply(logits), logits)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_strong_penalty_ends_a_circle(whirl, ahead: bool) -> None:
    """Each token has one that follows it, unless that is penalized."""
    plain, _ = run(whirl, max_tokens=300)
    ids = [t.id for t in plain]
    given = {"max_tokens": 300, "ahead": ahead}
    other, _ = run(whirl, sampling=Sampling(repeat_penalty=8.0), **given)
    said = [t.id for t in other if t.id >= 0]
    assert len(set(said)) > len(set(ids))
    first = next(i for i, token in enumerate(ids) if token in ids[:i])
    assert said[:first] == ids[:first]


def test_a_drawn_answer_may_go_in_circles(whirl) -> None:
    _, answer = run(whirl, max_tokens=600, allow_repetition=False, sampling=Sampling(temperature=1e-6, seed=1))
    assert (answer.completion_tokens, answer.stopped_repeating) == (600, False)
