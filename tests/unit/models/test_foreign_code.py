"""A model's directory is data: no call of transformers may run its code, and none may ask."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest

from kvcli.errors import ModelError
from kvcli.models import foreign_code
from kvcli.models.load import load
from kvcli.models.resolve import resolve
from tests.laws.helpers import drain

ROOT = Path(__file__).parents[3]
LOADERS = {"from_pretrained", "from_config"}


def unguarded(source: str) -> list[int]:
    """Lines that load something of transformers and do not say ``trust_remote_code=False``."""
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS
    ]
    return [
        call.lineno
        for call in calls
        if not any(
            word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in call.keywords
        )
    ]


def test_every_loader_is_told() -> None:
    sources = [p for folder in ("kvcli", "kernels", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    texts = {str(p.relative_to(ROOT)): p.read_text("utf-8") for p in sources}
    assert sum("from_pretrained(" in text for text in texts.values()) >= 3
    assert {p: lines for p, text in texts.items() if (lines := unguarded(text))} == {}
    assert not [p for p, text in texts.items() if "trust_remote_code=True" in text]


@pytest.mark.parametrize("words", ["x", "x, trust_remote_code=None", "x, trust_remote_code=True", "x, **options"])
def test_the_walk_sees(words: str) -> None:
    assert unguarded(f"AutoConfig.from_pretrained({words})") == [1]
    assert unguarded("AutoConfig.from_pretrained(x, trust_remote_code=False)") == []


def test_libraries_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    document = io.StringIO("y\ny\n")
    monkeypatch.setattr(sys, "stdin", document)
    with foreign_code.no_questions(), pytest.raises(EOFError):
        input()
    assert sys.stdin is document
    assert document.read() == "y\ny\n"


def test_only_this_refusal_is_translated() -> None:
    assert isinstance(foreign_code.needs_code("m", ValueError("pass `trust_remote_code=True`")), ModelError)
    assert foreign_code.needs_code("m", ValueError("damaged")) is None


@pytest.mark.parametrize(
    ("kind", "message"),
    [(None, "has a config.json without model_type"), ("weirdo", "has the architecture weirdo, which is not known")],
)
def test_an_architecture_that_is_not_known_is_named(model: Path, kind: str | None, message: str) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": kind, "architectures": ["Weirdo"]}
    (model / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value}))
    with pytest.raises(ModelError, match=message) as found:
        load(drain(resolve(str(model))))
    assert found.value.hint
