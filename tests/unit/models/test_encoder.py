"""Embedding models and cross-encoders: pooling, batches, and directories that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from kvcli.errors import ModelError
from kvcli.models.encoder import BATCH, Encoder, load_encoder

WORDS = re.findall(r"\w+", "the sea ship captain sails at night harbour is red in winter who where when does go")
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 9]) for i in range(2 * BATCH + 3)]


def made(folder: Path, *, classes: int = 0, pooling: str | None = "mean_tokens", seed: int = 3) -> Path:
    """A tiny random BERT with a tokenizer of whole words."""
    torch.manual_seed(seed)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=classes or 1, initializer_range=0.5,
    )  # fmt: skip
    (BertForSequenceClassification if classes else BertModel)(config).save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
        stages = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
        (folder / "modules.json").write_text(json.dumps(stages))
    return folder


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken", "max_tokens", None])
def test_a_vector_does_not_depend_on_the_texts_beside_it(tmp_path: Path, pooling: str | None) -> None:
    encoder = Encoder("tiny", made(tmp_path, pooling=pooling), device="cpu", dtype="float32")
    together = encoder.embed(TEXTS)
    alone = torch.cat([encoder.embed([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))


def test_pooling_is_over_the_tokens_of_the_text(tmp_path: Path) -> None:
    folder = made(tmp_path)
    model, tokenizer = BertModel.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        hidden = model.eval()(**tokenizer("the sea", return_tensors="pt")).last_hidden_state[0]
    wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0)
    got = Encoder("tiny", folder, device="cpu", dtype="float32").embed(["the sea", "the ship sails at night"])[0]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [0, 1])
def test_scores_follow_their_texts(tmp_path: Path, classes: int) -> None:
    encoder = Encoder("tiny", made(tmp_path, classes=classes), device="cpu", dtype="float32")
    assert encoder.cross == bool(classes)
    scores = encoder.scores("who sails at night", TEXTS)
    assert scores == pytest.approx(encoder.scores("who sails at night", TEXTS[::-1])[::-1], abs=1e-5)
    assert len(set(scores)) > 3
    assert encoder.scores("who", []) == []


def test_long_texts_are_cut(tmp_path: Path) -> None:
    encoder = Encoder("tiny", made(tmp_path), device="cpu", dtype="float32")
    assert torch.isfinite(encoder.embed(["sea " * 500, "ship"])).all()


def test_words_before_questions(tmp_path: Path) -> None:
    folder = made(tmp_path)
    plain = Encoder("tiny", folder, device="cpu", dtype="float32")
    prompts = {"prompts": {"query": "who ", "passage": "the "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    told = Encoder("tiny", folder, device="cpu", dtype="float32")
    torch.testing.assert_close(told.embed(["sea"], question=True), plain.embed(["who sea"]))
    torch.testing.assert_close(told.embed(["sea"]), plain.embed(["the sea"]))


def test_what_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="3 classes"):
        load_encoder(str(made(tmp_path / "classes", classes=3)))
    with pytest.raises(ModelError, match="does not know: pooling_mode_median"):
        load_encoder(str(made(tmp_path / "pool", pooling="median")))
    with pytest.raises(ModelError, match="not on this machine"):
        load_encoder("nobody/nothing-of-this-name")
    folder = made(tmp_path / "dense")
    stages = [*json.loads((folder / "modules.json").read_text()), {"path": "2_Dense", "type": "a.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(stages))
    with pytest.raises(ModelError, match="Dense"):
        load_encoder(str(folder))


def test_an_encoder_is_loaded_once_until_its_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    first = load_encoder("tiny")
    assert first is load_encoder(str(folder))
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert load_encoder("tiny") is not first
