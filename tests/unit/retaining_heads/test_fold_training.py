"""Feature maps of folds: they learn, and a training that is interrupted ends as one that is not."""

import itertools
from pathlib import Path

import pytest
import torch

from kvcli.errors import DamagedError
from kvcli.models.load import load
from kvcli.models.resolve import resolve
from kvcli.retaining_heads.data import Corpus
from kvcli.retaining_heads.fold_training import FoldOptions, train_fold
from tests.e2e.conftest import save_tiny
from tests.laws.helpers import drain

PROSE = ["It was a quiet day in Whitby, and nobody came up the hill. " * 60]
OPTIONS = FoldOptions(steps=6, budget=32, policies=("h2o", "knorm"))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A tiny model with a tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save_tiny(path)
    return load(drain(resolve(str(path), offline=True)), dtype="float32")


def corpus(seed: int = 0) -> Corpus:
    return Corpus(PROSE, [], tokens=(64, 80), seed=seed)


def test_interrupted_and_resumed_is_uninterrupted(known, tmp_path: Path) -> None:
    whole, share = drain(train_fold(known, corpus(), OPTIONS))
    place = tmp_path / "maps.training"
    cut = train_fold(known, corpus(), OPTIONS, place)
    for _ in itertools.islice(cut, 3):
        pass
    cut.close()
    again, same = drain(train_fold(known, corpus(), OPTIONS, place))
    assert share == same
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(DamagedError, match="data"):
        train_fold(known, corpus(1), OPTIONS, place)


def test_the_error_falls(known) -> None:
    events = list(train_fold(known, corpus(), FoldOptions(steps=30, budget=24, rate=0.01)))
    assert sum(e.overlap for e in events[-5:]) > sum(e.overlap for e in events[:5])
    assert all(e.loss > 0 for e in events)
