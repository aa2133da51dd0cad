"""Labels are the attention they claim to be, and training is a function of model, data, settings and seed."""

import gzip
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import small_models
from kvcli.cache.context import freeze
from kvcli.engine.observer import Observer
from kvcli.engine.prefill import prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.errors import DamagedError, InputError, ModelError
from kvcli.models.load import load, wrap
from kvcli.recipe import parse
from kvcli.retaining_heads import checkpoint, data
from kvcli.retaining_heads.checkpoint import HeadsCard
from kvcli.retaining_heads.data import Corpus, TrainingRecord
from kvcli.retaining_heads.facts import insert_fact, interleave
from kvcli.retaining_heads.labels import LabelRecorder
from kvcli.retaining_heads.losses import LEVELS, detrended, ordinal, overlap, regression, smooth_labels
from kvcli.retaining_heads.module import shapes
from kvcli.retaining_heads.trainer import Trainer, TrainingExample, TrainingOptions, _repeated, make_example, train
from kvcli.storage.dense import Dense
from tests import tiny
from tests.e2e.conftest import byte_tokenizer, save_tiny
from tests.laws.helpers import drain


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """A tiny model with a tokenizer."""
    from kvcli.models.resolve import resolve

    path = tmp_path_factory.mktemp("model")
    save_tiny(path)
    return load(drain(resolve(str(path), offline=True)), dtype="float32")


def observed(model, body: list[int], tails: list[tuple[list[int], int]], kind: str) -> Observer:
    work = drain(prefill_steps(model, body, parse("full")))
    with torch.inference_mode():
        observer = Observer(model.rotary, freeze(work, Dense()), [(n, len(ids) - n) for ids, n in tails], kind)
        model.forward(torch.tensor([i for ids, _ in tails for i in ids]), observer, logits=False)
    return observer


@pytest.mark.parametrize("family", ["llama", "llama-mha", "qwen3"])
def test_labels_are_maxima_of_the_eager_attention(family: str) -> None:
    model = tiny.load(family)
    body, tail = tiny.document(40), tiny.document(9, seed=1)
    with torch.inference_mode(), model.reference() as module:
        module.set_attn_implementation("eager")
        weights = module(input_ids=torch.tensor([body + tail]), output_attentions=True, use_cache=False).attentions
    observer = observed(model, body, [(tail, 5)], "prob")
    for label, expected in zip(observer.labels, weights, strict=True):
        kv, group = model.spec.kv_heads, model.spec.heads // model.spec.kv_heads
        maxima = expected[0, :, 40:, :40].view(kv, group, 9, 40).amax(dim=(1, 2))
        assert torch.allclose(label.exp(), maxima, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["prob", "logit"])
def test_tails_side_by_side_do_not_see_each_other(kind: str) -> None:
    model = tiny.load("mistral-window" if kind == "prob" else "llama")
    body, one, two = tiny.document(40), tiny.document(9, seed=1), tiny.document(12, seed=2)
    both = observed(model, body, [(one, 5), (two, 4)], kind).labels
    first = observed(model, body, [(one, 5)], kind).labels
    second = observed(model, body, [(two, 4)], kind).labels
    for a, b, c in zip(both, first, second, strict=True):
        if a is None:
            assert b is None
            assert c is None
        else:
            assert torch.allclose(a, torch.maximum(b, c), atol=1e-4)


def test_locrets_label_looks_through_the_answers_queries_only() -> None:
    """The row that predicts the answer's only token is the question's last; rows before it do not count."""
    model = tiny.load("llama")
    body, tail = tiny.document(30), tiny.document(8, seed=1)
    long = observed(model, body, [([*tail, 5], 8)], "logit").labels
    with torch.inference_mode(), model.reference() as module:
        layer = module.model.layers[0]
        hidden = layer.input_layernorm(module.model.embed_tokens(torch.tensor([[*body, *tail, 5]])))
        cos, sin = module.model.rotary_emb(hidden, torch.arange(39)[None])
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        q = layer.self_attn.q_proj(hidden).view(1, 39, 4, 8).transpose(1, 2)
        k = layer.self_attn.k_proj(hidden).view(1, 39, 2, 8).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        row = torch.einsum("hgd,hnd->hgn", q[0].view(2, 2, 39, 8)[:, :, 37], k[0, :, :30]) * 8**-0.5
    assert torch.allclose(long[0], row.amax(dim=1), atol=1e-4)


@pytest.mark.parametrize("kind", ["prob", "logit"])
def test_labels_do_not_depend_on_how_many_queries_are_taken_at_a_time(monkeypatch, kind: str) -> None:
    model = tiny.load("llama")
    body, tail = tiny.document(40), tiny.document(9, seed=1)
    whole = observed(model, body, [(tail, 3)], kind).labels
    monkeypatch.setattr("kvcli.engine.observer._WORK", 2 * 40 * model.spec.heads)
    for a, b in zip(whole, observed(model, body, [(tail, 3)], kind).labels, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("question_first", [0.0, 1.0])
def test_a_label_of_repeating_is_the_attention_of_the_text_said_again(talking, question_first: float) -> None:
    example = Corpus(["A quiet day. Nobody came. " * 40], [], tokens=(64, 128), question_first=question_first).example(
        0
    )
    prompt = Prompt(talking.tokenizer)
    taught = make_example(talking, prompt, example, TrainingOptions(), kind="repeat")
    ids = prompt.document(example.text)  # no question stands in front: none is asked
    asked = prompt.question("What does the text say, word for word?")
    observer = observed(talking, ids, [(asked + ids[taught.head :], len(asked))], "prob")
    for a, b in zip(taught.labels, observer.labels, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for x in taught.features:
        assert len(x) == len(ids)


def test_pieces_of_a_repeated_text_overlap_and_leave_nothing_out(talking, monkeypatch) -> None:
    monkeypatch.setattr("kvcli.retaining_heads.trainer._PIECE", 20)
    text = tiny.document(70)
    pieces = [answer for _, answer in _repeated(Prompt(talking.tokenizer), text)]
    assert [len(piece) for piece in pieces] == [20, 28, 28, 18]
    assert pieces[0] + [i for piece in pieces[1:] for i in piece[8:]] == text


def test_kinds_of_labels_take_turns() -> None:
    corpus, settings = Corpus(["A quiet day. " * 80], []), TrainingOptions(labels="prob,repeat,prob,logit")
    counts = Counter(settings.kind(corpus.chance(number, "label")) for number in range(2000))
    assert 900 < counts["prob"] < 1100
    assert 400 < counts["repeat"] < 600
    assert counts.total() == 2000


def test_recorded_features_do_not_depend_on_chunks() -> None:
    model = tiny.load("llama")
    ids = tiny.document(50)

    def recorded(chunk: int) -> list[torch.Tensor]:
        recorder = LabelRecorder(model.spec.layers)
        before, model.heads = model.heads, recorder
        drain(prefill_steps(model, ids, parse("locret(budget=50)"), chunk=chunk))
        model.heads = before
        return [recorder.features(i) for i in range(model.spec.layers)]

    for a, b in zip(recorded(50), recorded(7), strict=True):
        assert a.shape == (50, 64)
        assert torch.allclose(a, b, atol=1e-4)


def test_the_ordinal_loss_is_least_for_the_true_order() -> None:
    label = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(0.0, 1.0)
    levels = 4 * normal.icdf(torch.tensor(LEVELS)).expand(2, -1)
    right = ordinal(label * 4, label, levels, head=0)
    wrong = ordinal(-label * 4, label, levels, head=0)
    none = ordinal(torch.zeros_like(label), label, torch.tensor(LEVELS).logit().expand(2, -1), head=0)
    assert right < none < wrong
    assert none.item() == pytest.approx(1, abs=0.01)  # each level's loss is in units of its own entropy
    assert regression(label, label, 3) < regression(-label, label, 3)


@pytest.mark.parametrize("width", [1, 3, 9])
def test_a_spread_label_is_the_logarithm_of_the_mean_probability_nearby(width: int) -> None:
    label = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)) * 6 - 20
    wide = smooth_labels(label, width)
    for t in range(40):
        near = label[:, max(0, t - width // 2) : t + width // 2 + 1]
        assert torch.allclose(wide[:, t], near.exp().mean(dim=1).log(), rtol=1e-4, atol=1e-4)


def test_a_trend_is_the_same_at_every_call() -> None:
    """A least-squares fit in float32 is not: one call in some hundreds ended in other bits."""
    label = torch.randn(2, 110, generator=torch.Generator().manual_seed(0)) * 3
    first = detrended(label, 20)
    assert all(torch.equal(detrended(label, 20), first) for _ in range(2000))


def test_overlap_counts_the_common_tenth() -> None:
    label = torch.arange(100.0).expand(2, 100)
    assert overlap(label, label) == 1
    assert overlap(-label, label) == 0
    assert overlap(torch.cat([label[:, :95], torch.zeros(2, 5)], dim=1), label) == 0.5


def test_learning_learns() -> None:
    """Labels that are a linear function of the features are found."""
    model = tiny.load("llama")
    trainer = Trainer(model, TrainingOptions(steps=120, rate=1e-2, width=16, pool=1), Corpus(["Nothing."], []))
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2, 64, generator=generator)
    for _ in range(120):
        x = torch.randn(200, 64, generator=generator) * 5
        layers = model.spec.layers
        _, found = trainer.train_step(TrainingExample([x] * layers, [truth @ x.T] * layers, head=0))
    assert found > 0.7
    x = torch.randn(50, 64, generator=generator)
    expected = trainer.heads(0, x * trainer.gain[0])
    assert torch.allclose(trainer.folded().forward(0, x), expected, rtol=0.1, atol=0.1)  # bfloat16


def test_an_interrupted_training_ends_as_if_it_had_not_been(talking, tmp_path) -> None:
    corpus = Corpus(["It was a quiet day. Nobody came. " * 60], [], tokens=(64, 128), seed=1)
    settings = TrainingOptions(steps=12, width=8, check_every=6, budget=32, in_loop=0.5, labels="prob,repeat")
    whole, metrics = drain(train(talking, corpus, settings))
    checkpoint = tmp_path / "x.training"
    running = train(talking, corpus, settings, checkpoint)
    for event in running:
        if event.step == 8:
            break
    running.close()
    assert checkpoint.exists()
    rest = train(talking, corpus, settings, checkpoint)
    first = next(rest)
    assert first.step == 9
    resumed, again = drain(rest)
    assert metrics == again
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    checkpoint_of_other = tmp_path / "y.training"
    running = train(talking, corpus, settings, checkpoint_of_other)
    for event in running:
        if event.step == 7:
            break
    running.close()

    def taken_up(model=talking, corpus=corpus, **other: Any) -> None:
        train(model, corpus, TrainingOptions(**{**asdict(settings), **other}), checkpoint_of_other)

    taken_up(steps=20, check_every=5, patience=3)
    with pytest.raises(DamagedError, match="seed=0, not 5"):
        taken_up(seed=5)
    with pytest.raises(DamagedError, match="model="):
        taken_up(model=tiny.load("llama-mha"))
    with pytest.raises(DamagedError, match="data="):
        taken_up(corpus=Corpus(["It was another day. " * 60], [], tokens=(64, 128), seed=1))
    with pytest.raises(DamagedError, match=r"tokens=\[64, 128\], not \[64, 256\]"):
        taken_up(corpus=Corpus(["It was a quiet day. Nobody came. " * 60], [], tokens=(64, 256), seed=1))


def test_a_lesson_with_eviction_has_features_of_every_token(talking) -> None:
    from kvcli.retaining_heads.module import RetainingHeads

    heads = RetainingHeads.like(talking.spec, width=8).requires_grad_(False)
    example = Corpus(["A quiet day. " * 80], [], tokens=(64, 128), question_first=1.0).example(0)
    prompt = Prompt(talking.tokenizer)
    plain = make_example(talking, prompt, example, TrainingOptions())
    looped = make_example(talking, prompt, example, TrainingOptions(budget=64), heads)
    assert example.question_first
    for a, b, y in zip(plain.features, looped.features, plain.labels, strict=True):
        assert a.shape == b.shape
        assert a.shape[0] == y.shape[1]
    assert torch.allclose(plain.features[0], looped.features[0], atol=1e-5)  # the first layer sees no eviction
    assert not torch.allclose(plain.features[1], looped.features[1], atol=1e-3)
    for a, b in zip(plain.labels, looped.labels, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["qwen3_5_moe", "glm4_moe_lite", "gemma4", "gpt_oss", "gemma3n_text"])
def test_every_kind_of_model_gets_heads_for_its_layers_that_attend(kind: str, tmp_path, monkeypatch) -> None:
    """Recurrent layers, experts, latent attention, heads that differ by layer, sinks, shared keys and values."""
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        monkeypatch.setitem(small_models._SIZES, name, 320)
    model = wrap(small_models.build(kind), byte_tokenizer(), name=kind, fingerprint=None)
    corpus = Corpus(["It was a quiet day. Nobody came. " * 60], [], tokens=(64, 128), seed=1)
    settings = TrainingOptions(steps=2, width=8, check_every=0, budget=32, in_loop=0.5, labels="prob,repeat")
    heads, _ = drain(train(model, corpus, settings))
    assert heads.shapes == shapes(model.spec)
    checkpoint.save(tmp_path / "h.safetensors", heads, HeadsCard())
    loaded, card = checkpoint.load(tmp_path / "h.safetensors")
    checkpoint.check(loaded, card, model, tmp_path)
    model.heads = loaded
    work = drain(prefill_steps(model, tiny.document(90), parse("locret(budget=30, stabilizers=4)"), chunk=20))
    assert work.kept >= 30
    other = wrap(small_models.build("qwen3", head_dim=8), None, name="other", fingerprint=None)
    with pytest.raises(ModelError, match="where the model has"):
        checkpoint.check(loaded, card, other, tmp_path)


@pytest.mark.parametrize("kind", ["qwen3_5", "glm4_moe_lite", "gemma4", "gpt_oss"])
def test_labels_of_every_kind_of_model_are_the_attention_of_its_eager_code(kind: str) -> None:
    model = wrap(small_models.build(kind), None, name=kind, fingerprint=None)
    body, tail = tiny.document(40), tiny.document(9, seed=1)
    with torch.inference_mode(), model.reference() as module:
        module.set_attn_implementation("eager")
        output = module(input_ids=torch.tensor([body + tail]), output_attentions=True, use_cache=False)
    weights = [found for found in output.attentions if found is not None and found.dim() == 4]
    labels = observed(model, body, [(tail, 5)], "prob").labels
    assert len(weights) == len(labels)
    assert any(label is not None for label in labels)
    for i, (label, expected) in enumerate(zip(labels, weights, strict=True)):
        if label is not None:
            own = model.spec.of_layer(i)
            maxima = expected[0, :, 40:, :40].reshape(own.kv_heads, -1, 9, 40).amax(dim=(1, 2))
            assert torch.allclose(label.exp(), maxima, rtol=1e-3, atol=1e-5)


# --- data ---


def test_planted_facts_stand_in_the_text_and_answer_their_questions() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        fact = insert_fact(rng)
        assert fact.answer in fact.claim
        assert fact.answer not in fact.question
        assert "{" not in fact.sentence + fact.question
        text = "One day. Two days! Three? Four.\n"
        woven = interleave(text, [fact], rng)
        assert fact.sentence in woven
        assert len(woven) == len(text) + len(fact.sentence) + 1


def test_examples_are_a_function_of_seed_and_number() -> None:
    records = [TrainingRecord(f"Context {i}. " * 9, f"q{i}?", f"a{i}") for i in range(50)]
    prose = ["A sentence. " * 1000]
    one, two = Corpus(prose, records, seed=3), Corpus(prose, records, seed=3)
    assert [one.example(i) for i in (7, 3)] == [two.example(i) for i in (7, 3)]
    assert one.example(7) != Corpus(prose, records, seed=4).example(7)
    assert any(one.example(i).question_first for i in range(20))
    assert all(len(one.example(i).turns) == 1 for i in range(20) if one.example(i).question_first)


def test_what_is_held_out_is_in_no_example() -> None:
    prose = ["".join(f"Sentence {i}. " for i in range(3000))]
    corpus = Corpus(prose, [], tokens=(512, 512))
    for example in (corpus.example(i) for i in range(30)):
        numbers = [int(n) for n in re.findall(r"Sentence (\d+)\.", example.text)]
        assert max(numbers) < 2710  # nine tenths of the characters are a little more than nine tenths of the sentences
    (held,) = corpus.held_out(10_000, 1)
    assert "Sentence 2999." in held.text


SHAPES = {
    "plain": {"context": "The sea is blue.", "question": "Which colour?", "answer": "blue"},
    "answers": {"text": "The sea is blue.", "question": "Which colour?", "answers": ["blue", "azure"]},
    "squad": {"context": "The sea is blue.", "question": "Which colour?", "answers": {"text": ["blue"]}},
    "hotpot": {"context": [["Sea", ["The sea ", "is blue."]]], "question": "Which colour?", "answer": "blue"},
    "messages": {
        "messages": [
            {"role": "user", "content": "The sea is blue.\n\nWhich colour?"},
            {"role": "assistant", "content": "blue"},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "The sea is blue.\n\nWhich colour?"},
            {"from": "gpt", "value": "blue"},
        ]
    },
    "qmsum": {
        "meeting_transcripts": [{"speaker": "A", "content": "Hello"}, {"speaker": "B", "content": "The sea is blue."}],
        "specific_query_list": [{"query": "Which colour?", "answer": "blue", "relevant_text_span": [["1", "1"]]}],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_records_of_every_shape(tmp_path, shape: str, packed: bool) -> None:
    content = (json.dumps(SHAPES[shape]) + "\n").encode()
    path = tmp_path / ("x.jsonl.gz" if packed else "x.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    _, records = data.load([path])
    (record,) = records
    assert record.question == "Which colour?"
    assert record.answer == "blue"
    assert "sea is blue" in record.context


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n', "record 1: not a training record"),
        ("x.jsonl", b"{oops\n", "is not JSON"),
        ("x.json", b"[1]", "record 1"),
        ("x.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("x.txt.gz", b"no gzip", "cannot be read"),
    ],
)
def test_bad_training_files_are_named(tmp_path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        data.load([tmp_path / name])
    assert name in caught.value.message


def test_missing_training_file(tmp_path) -> None:
    with pytest.raises(InputError, match="No such file"):
        data.load([tmp_path / "none.txt"])
    with pytest.raises(InputError, match="nothing to train on"):
        Corpus([], [])
